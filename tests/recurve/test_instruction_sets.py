"""Claims on how the kernels run: every instruction set, any number of threads, the same bits each time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import Block, Sequence, assert_same, needs_kernels, results

import recurve
from recurve import _extension, ops

ROOT = Path(__file__).parents[2]
CALLS = [
    Sequence("lstm", steps=9, batch=13, inputs=5, hidden=37, lengths=True, resets=True),
    Sequence("gru", steps=9, batch=13, inputs=5, hidden=37, reverse=True),
    Sequence("rnn", steps=9, batch=13, inputs=5, hidden=37, lengths=True),
    Sequence("lstm", steps=6, batch=64, inputs=64, hidden=64),
    Sequence("lstm", steps=60, batch=49, inputs=5, hidden=37),  # a batch in parts, steps in groups
    Sequence("gru", steps=60, batch=33, inputs=9, hidden=37, resets=True, reverse=True),
    Sequence("gru", steps=90, batch=40, inputs=3, hidden=17),  # few columns, in shares of the weights' rows
    Sequence("gru", steps=4, batch=3, inputs=2, hidden=9, models=5),
    Sequence("lstm", steps=4, batch=7, inputs=2, hidden=9, models=3, shared=True),
    Block(batch=19, channels=5, outputs=12, size=(21, 17), options={"padding": 1, "activation": "silu"}),
    Block(batch=6, channels=6, outputs=6, models=3, options={"padding": 2, "groups": 6, "pool": "average"}),
]
every_call = pytest.mark.parametrize("case", CALLS, ids=lambda case: f"{case.op}-{case}")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def call(case, generator, dtype):
    tensors = {name: t.to(dtype) for name, t in case.tensors(generator).items()}
    arguments = case.arguments(generator)

    def run():
        with torch.enable_grad():  # a mode of each thread
            return results(getattr(ops, case.op), tensors, arguments)

    return run


def python(*arguments, **environment):
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, *arguments], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@every_dtype
@every_call
def test_any_number_of_threads_gives_the_same_bits(case, dtype, generator, threads):
    run = call(case, generator, dtype)
    with recurve.backend("fused"):
        threads(1)
        alone = run()
        for count in (2, 3, 4):
            threads(count)
            assert_same(run(), alone)


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_weights_beyond_the_caches_give_the_same_bits_on_any_number_of_threads(op, generator, threads):
    run = call(Sequence(op, steps=2, batch=9, inputs=3, hidden=725, resets=True), generator, torch.float64)
    with recurve.backend("fused"):
        threads(1)
        alone = run()
        for count in (2, 3):
            threads(count)
            assert_same(run(), alone)


@every_call
def test_two_hundred_repeats_give_the_same_bits(case, generator, threads):
    run = call(case, generator, torch.float32)
    threads(2)
    with recurve.backend("fused"):
        first = run()
        for _ in range(200):
            assert_same(run(), first)


def test_eight_python_threads_at_once_get_what_one_gets(generator, threads):
    threads(2)
    runs = [call(case, generator, torch.float32) for case in CALLS]
    with recurve.backend("fused"):
        alone = [run() for run in runs]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda run: run(), runs * 8))
    for i, found in enumerate(together):
        assert_same(found, alone[i % len(runs)])


ENDED_THREADS = """
import resource, threading, torch, recurve
torch.set_num_threads(1)
x, weight = torch.randn(2, 16, 64, 64), torch.randn(16, 16, 3, 3, requires_grad=True)
def work():
    recurve.ops.conv_block(x, weight, algorithm="direct").sum().backward()
def peak_after(threads):
    for _ in range(threads):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak_after(20)
print(peak_after(200) - before)
"""


def test_a_thread_that_ends_leaves_its_scratch_memory_to_others():
    done = python("-c", ENDED_THREADS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 20_000, f"200 threads that ended hold {done.stdout} KiB"


WORK = """
import multiprocessing, torch, recurve
torch.manual_seed(0)
x, module = torch.randn(30, 16, 5), recurve.nn.LSTM(5, 64)
def sums(_=None):
    y, _ = module(x)
    y.sum().backward()
    return y.sum().item(), module.weight_hh_l0.grad.sum().item()
if __name__ == "__main__":
    torch.set_num_threads({threads})
    here = sums()
    module.zero_grad()
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert pool.map(sums, range(2)) in ([here] * 2, [here, tuple(a * k for a, k in zip(here, (1, 2)))])
"""


# OpenMP threads do not survive a fork, so a process that forks has used one thread only.
@pytest.mark.parametrize(("method", "threads"), [("fork", 1), ("spawn", 2)])
def test_child_processes_get_the_same(method, threads, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(WORK.format(method=method, threads=threads))
    done = python(str(script))
    assert done.returncode == 0, done.stderr[-2000:]


def built_sets():
    return _extension._C.instruction_sets() if _extension._C is not None else []


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_passes_the_tests_of_the_ops(name):
    if name not in built_sets():
        pytest.skip(f"this machine has no {name}")
    if name == _extension._C.instruction_set():
        pytest.skip("the one in use, which the tests run on already")
    files = [f"tests/recurve/test_ops_{kind}.py" for kind in ("recurrent", "conv")]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, RECURVE_ISA=name)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_the_environment_chooses_the_instruction_set(name):
    if name not in built_sets():
        pytest.skip(f"this machine has no {name}")
    done = python("-c", "import recurve._C as c; print(c.instruction_set())", RECURVE_ISA=name)
    assert done.stdout.strip() == name, done.stderr


@needs_kernels
def test_an_unknown_instruction_set_is_refused_and_the_allowed_ones_named():
    done = python("-c", "import recurve", RECURVE_ISA="sse9")
    assert done.returncode != 0
    assert f"RECURVE_ISA=sse9 cannot be had; this machine and build allow: {', '.join(built_sets())}" in done.stderr
