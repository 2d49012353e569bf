"""Claims on the choice of a path: forced backends, what status tells, and life without the extension."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Block, Sequence, assert_close, assert_same, needs_kernels, reference, results

import recurve
from recurve import _backend, _extension, ops
from recurve.ops import conv
from recurve.ops._cuda import native_wins_convolution, native_wins_recurrent, refusal_convolution

ROOT = Path(__file__).parents[2]
CALLS = [
    *(Sequence(op) for op in ("lstm", "gru", "rnn")),
    *(Sequence(op, reverse=True, no_bias=True) for op in ("lstm", "gru", "rnn")),
    *(Sequence(op, lengths=True, resets=True) for op in ("lstm", "gru", "rnn")),
    *(Sequence(op, models=2, shared=shared) for op in ("lstm", "gru", "rnn") for shared in (True, False)),
    Sequence("rnn", options={"activation": "relu"}),
    Sequence("rnn", options={"activation": "sigmoid"}),
    Sequence("rnn", options={"leak": 0.5}),
    Block(),
    Block(models=2, shared=True),
    Block(models=2, no_bias=True),
]
every_call = pytest.mark.parametrize("case", CALLS, ids=lambda case: f"{case.op}-{case}")


@every_call
def test_all_backends_agree(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    found = {}
    for name in ("auto", "fused", "native"):
        with recurve.backend(name):
            found[name] = results(getattr(ops, case.op), tensors, arguments)
    assert_close(found["native"], found["fused"], 1e-10)
    assert_close(found["auto"], found["fused"], 1e-10)
    assert_close(found["native"], results(reference(case), tensors, arguments), 1e-10)


@every_call
def test_the_forced_path_is_the_one_taken(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)

    def names(backend):
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
            recurve.backend(backend),
        ):
            getattr(ops, case.op)(**tensors, **arguments)
        return {event.name for event in profile.events()}

    assert f"recurve::{case.op}" in names("fused")
    assert not any(name.startswith("recurve::") for name in names("native"))


def test_an_unknown_backend_names_the_allowed_ones():
    with (
        pytest.raises(ValueError, match="'slow' is unknown; allowed: 'auto', 'fused', 'native'"),
        recurve.backend("slow"),
    ):
        pass


def test_the_backend_before_comes_back_even_after_an_error():
    with recurve.backend("fused"):
        with pytest.raises(KeyError), recurve.backend("native"):
            raise KeyError
        assert _backend._backend == "fused"
    assert _backend._backend == "auto"


@needs_kernels
def test_forcing_fused_where_it_cannot_serve_tells_why(generator):
    tensors = {n: t.to(torch.complex64) for n, t in Block().tensors(generator).items()}
    options = {"activation": "none", "pool": "none"}
    with (
        recurve.backend("fused"),
        pytest.raises(RuntimeError, match=r"conv_block cannot run fused: no fused kernel for torch.complex64"),
    ):
        ops.conv_block(**tensors, **options)
    assert ops.conv_block(**tensors, **options).dtype == torch.complex64


def test_forcing_fused_under_a_functional_derivative_tells_why(generator):
    tensors = Sequence("gru").tensors(generator)
    with recurve.backend("fused"), pytest.raises(RuntimeError, match=r"torch.func derivative.*use 'auto' or 'native'"):
        torch.func.grad(lambda x: ops.gru(**(tensors | {"x": x}))[0].sum())(tensors["x"])


def test_meta_tensors_run_natively():
    y, h_n = ops.gru(*(torch.empty(s, device="meta") for s in ((5, 3, 4), (3, 7), (21, 4), (21, 7))))
    assert (y.shape, h_n.shape) == ((5, 3, 7), (3, 7))
    assert y.is_meta


@needs_kernels
def test_status_tells_versions_instruction_set_and_where_each_op_runs():
    text = recurve.status()
    assert f"recurve {recurve.__version__} on torch {torch.__version__}" in text
    assert _extension._C.instruction_set() in text
    for op in ("lstm", "gru", "rnn", "conv_block"):
        for dtype in ("float32", "float64"):
            assert any(line.split() == [op, "cpu", dtype, "fused"] for line in text.splitlines())


def python(code, **environment):
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])} | environment
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT = """
import itertools, sys
sys.modules["recurve._C"] = None  # an import of it fails, as if it were not built
import torch, recurve
from recurve import ops
from cases import Sequence, Block, results, reference, assert_close
from torch.func import functional_call, stack_module_state

status = recurve.status()
assert "extension: missing, everything runs on native ops" in status, status
assert "RECURVE_BUILD=cpu" in status, status
assert "fused" not in status.replace("fused convolutional", ""), status
generator = torch.Generator().manual_seed(0)
ops_and_options = itertools.product(("lstm", "gru", "rnn"), (False, True), (None, 2))
cases = [Sequence(op, lengths=varied, resets=varied, models=models) for op, varied, models in ops_and_options]
for case in [*cases, Block(), Block(models=2)]:
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    function = getattr(ops, case.op)
    assert_close(results(function, tensors, arguments), results(reference(case), tensors, arguments), 1e-10)
    try:
        with recurve.backend("fused"):
            function(**tensors, **arguments)
        raise SystemExit("a forced backend ran without the extension")
    except RuntimeError as error:
        assert "the extension is missing" in str(error), error
for kind in ("LSTM", "GRU", "RNN"):
    modules = [getattr(recurve.nn, kind)(3, 5) for _ in range(2)]
    theirs = getattr(torch.nn, kind)(3, 5)
    theirs.load_state_dict(modules[0].state_dict())
    x = torch.randn(6, 4, 3)
    assert torch.equal(modules[0](x)[0], theirs(x)[0])
    stacked, _ = stack_module_state(modules)
    y = torch.vmap(lambda p: functional_call(modules[0], p, (x,))[0])(stacked)
    y.sum().backward()
    torch.testing.assert_close(y, torch.stack([m(x)[0] for m in modules]))
    torch.func.grad(lambda x: modules[0](x)[0].sum())(x)
    compiled = torch.compile(modules[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], theirs(x)[0])
block = recurve.nn.ConvBlock(3, 5, 3)
block(torch.randn(2, 3, 9, 8)).sum().backward()
print("all native")
"""


def test_without_the_extension_everything_runs_natively_and_says_why():
    assert "all native" in python(WITHOUT)


def test_an_extension_that_does_not_load_is_told_apart_from_a_missing_one(tmp_path):
    code = """
import importlib, sys
class Broken:
    def find_spec(self, name, *_):
        if name == "recurve._C":
            raise ImportError("undefined symbol: _ZN2at")
sys.meta_path.insert(0, Broken())
import recurve
print(recurve.status())
"""
    text = python(code)
    assert "it does not load (undefined symbol: _ZN2at)" in text
    assert "rebuild it against this torch" in text


def test_python_dash_m_recurve_prints_the_status():
    done = subprocess.run([sys.executable, "-m", "recurve"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(f"recurve {recurve.__version__}")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_get_the_same(start, generator):
    """Fork after the kernels have run in the parent, as data loaders do; spawn starts anew."""
    case = Sequence("lstm", hidden=17)
    tensors = {n: t.float() for n, t in case.tensors(generator).items()}
    here = results(ops.lstm, tensors, {}, wanted=())
    with torch.multiprocessing.get_context(start).Pool(1) as pool:
        there = pool.apply(run_lstm, ({n: t.numpy() for n, t in tensors.items()},))
    assert_same({n: torch.from_numpy(a) for n, a in there.items()}, here)


def run_lstm(tensors):
    torch.set_num_threads(1)
    found = results(ops.lstm, {n: torch.from_numpy(a) for n, a in tensors.items()}, {}, wanted=())
    return {n: t.numpy() for n, t in found.items()}


SLOW_HERE = [  # where torch's own op was measured to be the faster one
    (lambda: recurve.nn.GRU(3, 8), (1, 4, 3)),
    (lambda: recurve.nn.LSTM(3, 8, batch_first=True), (4, 1, 3)),
    (lambda: recurve.nn.RNN(3, 8), (2, 4, 3)),
    (lambda: recurve.nn.LSTMCell(3, 8), (4, 3)),
    (lambda: recurve.nn.GRUCell(3, 8), (3,)),
]


@pytest.mark.parametrize(("make", "shape"), SLOW_HERE)
@needs_kernels
def test_where_the_kernel_would_be_slower_torchs_op_serves_unless_it_is_asked_for(make, shape, generator):
    module, x = make(), torch.randn(shape, generator=generator)
    assert not fused_calls(lambda: module(x))
    with recurve.backend("fused"):
        assert fused_calls(lambda: module(x))
    with recurve.nn.probe() as record:
        module(x)
    assert record.calls


@needs_kernels
def test_a_few_steps_or_some_sequences_are_enough_for_the_kernel(generator):
    assert fused_calls(lambda: recurve.nn.GRU(3, 8)(torch.randn(2, 1, 3)))
    assert fused_calls(lambda: recurve.nn.GRUCell(3, 8)(torch.randn(17, 3)))


def fused_calls(run):
    """How often a fused recurrent op was called."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.name == "recurve::sequence_forward" for event in profile.events())


def test_images_beyond_what_kernels_count_are_refused_on_a_gpu():
    images = torch.empty(2**15, 3, 182, 182, device="meta")
    assert refusal_convolution(images[: 2**14], (0, 0)) is None
    assert refusal_convolution(images, (0, 0)) == f"{2**15 * 182**2} pixels of a model are more than the kernels count"
    assert refusal_convolution(images[:30000].expand(2, -1, -1, -1, -1), (4, 4)) is not None


@pytest.mark.parametrize(
    ("op", "dtype", "batch", "hidden", "wins"),
    [
        ("gru", torch.bfloat16, 64, 512, False),
        ("lstm", torch.bfloat16, 1, 16, False),
        ("lstm", torch.bfloat16, 128, 1024, True),
        ("gru", torch.float32, 128, 256, False),
        ("gru", torch.float32, 32, 192, True),
        ("lstm", torch.float32, 1, 2048, True),
        ("gru", torch.float16, 64, 512, True),
        ("lstm", torch.float64, 64, 512, True),
        ("rnn", torch.bfloat16, 64, 512, True),
    ],
)
def test_cudnn_serves_where_it_was_measured_to_win_or_nothing_was(op, dtype, batch, hidden, wins):
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert native_wins_recurrent(op, dtype, batch, hidden) is wins


def test_cudnn_serves_float32_that_must_not_round():
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert native_wins_recurrent("gru", torch.float32, 128, 256)


@pytest.mark.parametrize(
    ("inputs", "kernel", "options", "wins"),
    [
        (3, 3, {}, False),
        (64, 3, {}, True),
        (3, 3, {"training": False}, True),
        (1, 5, {"depthwise": True}, False),
        (1, 3, {"depthwise": True}, True),
        (1, 7, {"depthwise": True, "channels_last": True}, True),
    ],
)
def test_cudnn_serves_convolutions_where_it_was_measured_to_win(inputs, kernel, options, wins):
    given = {"depthwise": False, "training": True, "channels_last": False} | options
    assert native_wins_convolution(inputs, (kernel, kernel), **given) is wins


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("weight", "options", "wins"),
    [
        ((32, 32, 3, 3), {}, (False, False)),
        ((32, 32, 3, 3), {"activation": "silu"}, (False, True)),
        ((32, 32, 5, 5), {"pool": "none", "suits_winograd": False}, (True, True)),
        ((8, 32, 5, 5), {"suits_winograd": False}, (True, False)),
        ((32, 1, 3, 3), {"suits_winograd": False}, (False, False)),
        ((32, 1, 3, 3), {"pool": "none", "suits_winograd": False}, (True, True)),
        ((32, 1, 7, 7), {"pool": "none", "suits_winograd": False}, (False, False)),
    ],
    ids=str,
)
def test_torch_serves_channels_that_come_last_where_it_was_measured_to_win(weight, options, wins, training):
    x = torch.empty(2, 32, 8, 8, device="cpu").to(memory_format=torch.channels_last)
    weights = torch.empty(weight, device="cpu", requires_grad=training)
    given = {"stride": (1, 1), "activation": "relu", "pool": "max", "suits_winograd": True} | options
    assert conv._native_wins(x, weights, groups=32 // weight[1], **given) is wins[training]
