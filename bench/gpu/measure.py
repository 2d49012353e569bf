"""Times the fused ops against torch.nn on the GPU, paired: `python -m bench.gpu.measure FILE`, one JSON line a case.

All sides of a case are captured as CUDA graphs, replayed in random order with a cold L2 cache, and timed by events;
the ratio is the median over rounds of native time / ours. A side that cannot be captured is timed as it is, and says
so. Recurrent cases also tell the time of every design that the kernels have, so that the rules which choose among them
and torch's own ops can be written from measurements.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

import recurve
from recurve._backend import Backend

PAIRS, SECONDS_A_CASE = 15, 1.2
DESIGN = "RECURVE_CUDA_DESIGN"
DEVICE = "cuda"  # tests rehearse elsewhere
Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One training step; `dtype` "tf32" is float32 with products on tensor cores."""

    op: str
    dtype: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    models: int = 1

    @property
    def group(self) -> str:
        return "ensemble training" if self.models > 1 else f"{self.op.upper()} training"

    @property
    def type(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)


@dataclass(frozen=True)
class Block:
    """One training step of a convolution block on square images."""

    dtype: str
    batch: int
    channels: int
    outputs: int
    size: int
    kernel: int
    groups: int = 1
    pool: str = "max"
    wide: bool = False  # many channels, where cuDNN should win

    @property
    def group(self) -> str:
        return "wide convolution training" if self.wide else "convolution training"

    @property
    def type(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)


def cases() -> Iterator[Case | Block]:
    """Ensembles first, since a limit on time cuts from the end."""
    for op, hidden in product(("gru", "lstm"), (32, 64, 128)):
        for dtype in ("tf32", "bfloat16"):
            yield Case(op, dtype, 30, 32, 3, hidden, models=128)
    for op, dtype in product(("gru", "lstm"), ("bfloat16", "tf32")):
        for hidden, batch, steps in ((256, 16, 50), (256, 128, 50), (512, 64, 200), (1024, 16, 50), (1024, 128, 50)):
            yield Case(op, dtype, steps, batch, hidden, hidden)
    for dtype in ("tf32", "bfloat16"):
        for batch, channels, outputs, size in ((128, 1, 16, 28), (128, 3, 32, 32), (64, 3, 32, 64)):
            yield Block(dtype, batch, channels, outputs, size, 3)
        for kernel in (5, 7):
            yield Block(dtype, 64, 64, 64, 32, kernel, groups=64, pool="none")
        yield Block(dtype, 64, 64, 64, 32, 3, wide=True)


def sides(case: Case | Block) -> dict[str, Step]:
    """One training step (forward and all gradients): "native", which loops over torch.nn modules, "ours" as forced, and
    "chosen" as the selector has it."""
    return block_sides(case) if isinstance(case, Block) else recurrent_sides(case)


def block_sides(case: Block) -> dict[str, Step]:
    options: dict[str, Any] = {"device": DEVICE, "dtype": case.type}
    x = torch.randn(case.batch, case.channels, case.size, case.size, **options, requires_grad=True)
    weight = torch.randn(case.outputs, case.channels // case.groups, case.kernel, case.kernel, **options)
    bias = torch.zeros(case.outputs, **options)
    tensors = [x, weight.requires_grad_(), bias.requires_grad_()]

    def through(backend: Backend) -> Step:
        def step() -> None:
            with recurve.backend(backend):
                y = recurve.ops.conv_block(
                    *tensors,
                    padding=case.kernel // 2,
                    groups=case.groups,
                    pool=case.pool,  # type: ignore[arg-type]
                )
            torch.autograd.grad(y.sum(), tensors)

        return step

    return {"native": through("native"), "ours": through("fused"), "chosen": through("auto")}


def recurrent_sides(case: Case) -> dict[str, Step]:
    options: dict[str, Any] = {"device": DEVICE, "dtype": case.type}
    ours = [getattr(recurve.nn, case.op.upper())(case.inputs, case.hidden, **options) for _ in range(case.models)]
    theirs = [getattr(torch.nn, case.op.upper())(case.inputs, case.hidden, **options) for _ in range(case.models)]
    x = torch.randn(case.models, case.steps, case.batch, case.inputs, **options)
    stacked, _ = stack_module_state(ours)
    template = ours[0]

    def output(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(template, parameters, (inputs,))[0]

    def through(backend: Backend) -> Step:
        def step() -> None:
            with recurve.backend(backend):
                if case.models > 1:
                    torch.autograd.grad(torch.vmap(output)(stacked, x).sum(), list(stacked.values()))
                else:
                    torch.autograd.grad(template(x[0])[0].sum(), list(template.parameters()))

        return step

    def native() -> None:
        for module, inputs in zip(theirs, x, strict=True):
            torch.autograd.grad(module(inputs)[0].sum(), list(module.parameters()))

    return {"native": native, "ours": through("fused"), "chosen": through("auto")}


def times_of_designs(step: Step, flush: Tensor) -> dict[str, float]:
    """Milliseconds of our side by design, those that serve."""
    found = {}
    for design in ("block", "grid", "steps"):
        os.environ[DESIGN] = design
        try:
            replay, _ = captured(step)
            found[design] = statistics.median(milliseconds(replay, flush) for _ in range(5))
        except RuntimeError as error:
            if DESIGN not in str(error):
                raise
        finally:
            del os.environ[DESIGN]
    return found


def captured(step: Step) -> tuple[Step, bool]:
    """The step as a replay of its CUDA graph, and whether it could be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:
        torch.cuda.synchronize()
        return step, False
    return graph.replay, True


def milliseconds(step: Step, flush: Tensor) -> float:
    """Of one step, after the L2 cache was overwritten."""
    flush.zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measured(case: Case | Block, flush: Tensor) -> dict[str, Any]:
    """Times of all sides, and the paired ratios of native time / ours and native time / the chosen path's."""
    steps = sides(case)
    replays = {name: captured(step) for name, step in steps.items()}
    rounds: list[dict[str, float]] = []
    start = time.monotonic()
    while len(rounds) < PAIRS and (len(rounds) < 3 or time.monotonic() - start < SECONDS_A_CASE):
        names = random.sample(list(replays), len(replays))
        rounds.append({name: milliseconds(replays[name][0], flush) for name in names})
    row: dict[str, Any] = {"pairs": len(rounds), "not_captured": [n for n, (_, whole) in replays.items() if not whole]}
    row |= {f"{name}_ms": statistics.median(r[name] for r in rounds) for name in steps}
    row["ratio"] = statistics.median(r["native"] / r["ours"] for r in rounds)
    row["ratio_chosen"] = statistics.median(r["native"] / r["chosen"] for r in rounds)
    if isinstance(case, Case):
        row["designs_ms"] = times_of_designs(steps["ours"], flush)
    return row


def main(target: Path) -> None:
    torch.manual_seed(0)
    random.seed(0)
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for case in cases():
        row: dict[str, Any] = {"group": case.group, **vars(case)}
        try:
            row |= measured(case, flush)
        except RuntimeError as error:
            row["error"] = str(error).splitlines()[0]
        with target.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
