"""Claims on any call at all: hypothesis draws shapes, strides, options and the gradients wanted."""

from dataclasses import replace

import pytest
import torch
from cases import EPSILON, Block, Sequence, assert_close, reference, results, strided
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import recurve
from recurve import ops

SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33])
FEW = st.integers(0, 6)
how_many = pytest.mark.parametrize("examples", [500, pytest.param(10_000, marks=pytest.mark.slow)])


def plain(tensor):
    return tensor


def reversed_axes(tensor):
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous().permute(*reversed(range(tensor.dim())))


def repeated(tensor):
    """The first slice of the last axis everywhere, with stride zero."""
    return tensor[..., :1].expand(tensor.shape) if tensor.numel() else tensor


LAYOUTS = (plain, strided, reversed_axes, repeated)


@st.composite
def sequences(draw):
    op = draw(st.sampled_from(["lstm", "gru", "rnn"]))
    models = draw(st.sampled_from([None, None, 1, 2, 3]))
    options = {}
    if op == "rnn":
        options["activation"] = draw(st.sampled_from(["tanh", "relu", "sigmoid"]))
        options["leak"] = draw(st.sampled_from([1.0, 0.25, 0.9]))
    if op == "gru":
        options["reset"] = draw(st.sampled_from(["after", "before"]))
    return Sequence(
        op,
        steps=draw(st.integers(1, 7)),
        batch=draw(st.integers(0, 14)),
        inputs=draw(SIZES),
        hidden=draw(SIZES),
        models=models,
        shared=models is not None and draw(st.booleans()),
        no_bias=draw(st.booleans()),
        lengths=draw(st.booleans()),
        resets=draw(st.booleans()),
        reverse=draw(st.booleans()),
        options=options,
    )


@st.composite
def blocks(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    models = draw(st.sampled_from([None, None, 1, 2]))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    options = {
        "stride": draw(pairs),
        "padding": draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        "dilation": draw(pairs),
        "groups": groups,
        "activation": draw(st.sampled_from(["none", "relu", "leaky_relu", "silu", "tanh", "sigmoid"])),
        "pool": draw(st.sampled_from(["none", "max", "average"])),
        "pool_size": draw(pairs),
    }
    size = draw(st.tuples(st.integers(1, 21), st.integers(1, 21)))
    for axis in range(2):
        extent = options["dilation"][axis] * (kernel[axis] - 1) + 1
        convolved = (size[axis] + 2 * options["padding"][axis] - extent) // options["stride"][axis] + 1
        assume(convolved >= (1 if options["pool"] == "none" else options["pool_size"][axis]))
    return Block(
        batch=draw(st.integers(0, 19)),
        channels=groups * draw(st.integers(1, 4)),
        outputs=groups * draw(st.integers(1, 5)),
        size=size,
        kernel=kernel,
        models=models,
        shared=models is not None and draw(st.booleans()),
        no_bias=draw(st.booleans()),
        options=options,
    )


def drawn_call(data, case):
    """Tensors in drawn layouts, the arguments, and the names of the tensors that want a gradient.

    Pixels are not repeated before max pooling: rounding would decide which of them is the largest.
    """
    layouts = LAYOUTS[:-1] if isinstance(case, Block) and case.options["pool"] == "max" else LAYOUTS
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32), label="seed"))
    tensors = case.tensors(generator)
    tensors = {name: data.draw(st.sampled_from(layouts), label=name)(t) for name, t in tensors.items()}
    wanted = data.draw(st.sets(st.sampled_from(sorted(tensors))), label="wanted")
    return tensors, case.arguments(generator), wanted


def check_float64(case, data):
    tensors, arguments, wanted = drawn_call(data, case)
    with recurve.backend("fused"):
        found = results(getattr(ops, case.op), tensors, arguments, wanted)
    assert_close(found, results(reference(case), tensors, arguments, wanted), 1e-10)


def check_threads(case, data):
    if case.op == "conv_block":  # other strides run on torch's op, which promises less
        case = replace(case, options=case.options | {"stride": (1, 1)})
    tensors, arguments, wanted = drawn_call(data, case)
    tensors = {name: t.float() for name, t in tensors.items()}
    with recurve.backend("fused"):
        torch.set_num_threads(1)
        alone = results(getattr(ops, case.op), tensors, arguments, wanted)
        torch.set_num_threads(3)
        together = results(getattr(ops, case.op), tensors, arguments, wanted)
    for name, value in alone.items():
        assert torch.equal(together[name], value), name


def check_float32(case, data):
    """Forward rounding error of the outputs stays within a few units; no draw of smooth cells amplifies it."""
    tensors, arguments, _ = drawn_call(data, case)
    tensors = {name: t.float() for name, t in tensors.items()}
    with recurve.backend("fused"):
        found = results(getattr(ops, case.op), tensors, arguments, ())
    exact = results(reference(case), {name: t.double() for name, t in tensors.items()}, arguments, ())
    for name, value in exact.items():
        if value.numel():
            scale = max(1.0, value.abs().max().item())
            assert (found[name] - value).abs().max().item() <= 100 * EPSILON * scale, name


CHECKS = {"float64": check_float64, "float32": check_float32, "threads": check_threads}


@how_many
@pytest.mark.parametrize("what", CHECKS)
@pytest.mark.parametrize("cases", [sequences, blocks], ids=["recurrent", "conv_block"])
def test_any_call_is_right(cases, what, examples, threads):
    check = CHECKS[what]
    settings(max_examples=examples)(given(case=cases(), data=st.data())(check))()


def check_vmap(case, data):
    assume(case.models is None)
    tensors, arguments, wanted = drawn_call(data, case)
    mapped = data.draw(st.sets(st.sampled_from(sorted(tensors)), min_size=1), label="mapped")
    given_tensors = {n: torch.stack([t, -t, 2 * t]) if n in mapped else t for n, t in tensors.items()}
    dims = {n: 0 if n in mapped else None for n in tensors}

    def through(function):
        return lambda **leaves: torch.vmap(lambda part: function(**part, **arguments), in_dims=(dims,))(leaves)

    with recurve.backend("fused"):
        found = results(through(getattr(ops, case.op)), given_tensors, {}, wanted)
    assert_close(found, results(through(reference(case)), given_tensors, {}, wanted), 1e-9)


@how_many
@pytest.mark.parametrize("cases", [sequences, blocks], ids=["recurrent", "conv_block"])
def test_any_vmap_is_right(cases, examples):
    settings(max_examples=examples)(given(case=cases(), data=st.data())(check_vmap))()


def check_module(data):
    name = data.draw(st.sampled_from(["LSTM", "GRU", "RNN"]), label="module")
    options = {
        "num_layers": data.draw(st.integers(1, 3), label="layers"),
        "bias": data.draw(st.booleans(), label="bias"),
        "batch_first": data.draw(st.booleans(), label="batch first"),
        "bidirectional": data.draw(st.booleans(), label="bidirectional"),
    }
    inputs, hidden = data.draw(SIZES, label="inputs"), data.draw(SIZES, label="hidden")
    steps, batch = data.draw(st.integers(1, 6), label="steps"), data.draw(FEW, label="batch")
    torch.manual_seed(data.draw(st.integers(0, 2**32), label="seed"))
    ours = getattr(recurve.nn, name)(inputs, hidden, **options, dtype=torch.float64)
    theirs = getattr(torch.nn, name)(inputs, hidden, **options, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    frozen = data.draw(st.sets(st.sampled_from([n for n, _ in ours.named_parameters()])), label="frozen")
    x = torch.randn(batch, steps, inputs) if options["batch_first"] else torch.randn(steps, batch, inputs)
    if data.draw(st.booleans(), label="packed") and batch > 0:
        sizes = torch.randint(1, steps + 1, (batch,))
        x = torch.nn.utils.rnn.pack_padded_sequence(x.double(), sizes, options["batch_first"], enforce_sorted=False)
    else:
        x = data.draw(st.sampled_from(LAYOUTS), label="layout")(x.double())
    hx = None
    if data.draw(st.booleans(), label="states"):
        layers = options["num_layers"] * (1 + options["bidirectional"])
        state = [torch.randn(layers, batch, hidden).double() for _ in range(2)]
        hx = tuple(state) if name == "LSTM" else state[0]
    outcomes = []
    for module in (ours, theirs):
        for n, p in module.named_parameters():
            p.requires_grad_(n not in frozen)
        y, last = module(x, hx)
        y = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
        outputs = {"y": y} | {f"state {i}": s for i, s in enumerate(last if isinstance(last, tuple) else (last,))}
        if len(frozen) < len(list(module.parameters())):
            sum((o.sin() * 1.3).sum() for o in outputs.values()).backward()
        grads = {n: torch.zeros(1).double() if p.grad is None else p.grad for n, p in module.named_parameters()}
        outcomes.append({n: o.detach() for n, o in outputs.items()} | grads)
    assert_close(*outcomes, 1e-10)


@how_many
def test_any_module_equals_torch(examples):
    settings(max_examples=examples)(given(data=st.data())(check_module))()
