"""Times the fused ops against torch.nn on the GPU, paired: `python -m bench.gpu.measure FILE`, one JSON line a case.

Both sides of a case are captured as CUDA graphs, replayed in random order with a cold L2 cache, and timed by events;
the ratio is the median over pairs of native time / ours. A side that cannot be captured is timed as it is, and says so.
"""

from __future__ import annotations

import json
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

PAIRS, SECONDS_A_CASE = 15, 4.0
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
    def type(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)


def cases() -> Iterator[Case]:
    """Ensembles first, since a limit on time cuts from the end."""
    for op, hidden in product(("gru", "lstm"), (32, 64, 128)):
        for dtype in ("tf32", "bfloat16"):
            yield Case(op, dtype, 30, 32, 3, hidden, models=128)
    for op, dtype in product(("gru", "lstm"), ("bfloat16", "tf32")):
        for hidden, batch, steps in ((256, 16, 50), (256, 128, 50), (512, 64, 200), (1024, 16, 50), (1024, 128, 50)):
            yield Case(op, dtype, steps, batch, hidden, hidden)
    for op in ("gru", "lstm"):
        yield Case(op, "tf32", 30, 32, 3, 64)


def sides(case: Case) -> tuple[Step, Step]:
    """One training step (forward and all gradients) of ours, and of a loop over torch.nn modules."""
    options: dict[str, Any] = {"device": "cuda", "dtype": case.type}
    ours = [getattr(recurve.nn, case.op.upper())(case.inputs, case.hidden, **options) for _ in range(case.models)]
    theirs = [getattr(torch.nn, case.op.upper())(case.inputs, case.hidden, **options) for _ in range(case.models)]
    x = torch.randn(case.models, case.steps, case.batch, case.inputs, **options)
    stacked, _ = stack_module_state(ours)
    template = ours[0]

    def output(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(template, parameters, (inputs,))[0]

    def fused() -> None:
        with recurve.backend("fused"):
            if case.models > 1:
                torch.autograd.grad(torch.vmap(output)(stacked, x).sum(), list(stacked.values()))
            else:
                torch.autograd.grad(template(x[0])[0].sum(), list(template.parameters()))

    def native() -> None:
        for module, inputs in zip(theirs, x, strict=True):
            torch.autograd.grad(module(inputs)[0].sum(), list(module.parameters()))

    return fused, native


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


def measured(case: Case, flush: Tensor) -> dict[str, Any]:
    """Times of both sides and their paired ratio."""
    (ours, ours_captured), (native, native_captured) = map(captured, sides(case))
    pairs: list[tuple[float, float]] = []
    start = time.monotonic()
    while len(pairs) < PAIRS and (len(pairs) < 3 or time.monotonic() - start < SECONDS_A_CASE):
        times = {}
        for name, step in random.sample([("ours", ours), ("native", native)], 2):
            times[name] = milliseconds(step, flush)
        pairs.append((times["ours"], times["native"]))
    return {
        "pairs": len(pairs),
        "ours_ms": statistics.median(o for o, _ in pairs),
        "native_ms": statistics.median(n for _, n in pairs),
        "ratio": statistics.median(n / o for o, n in pairs),
        "ours_captured": ours_captured,
        "native_captured": native_captured,
    }


def main(target: Path) -> None:
    torch.manual_seed(0)
    random.seed(0)
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for case in cases():
        row: dict[str, Any] = dict(vars(case))
        try:
            row |= measured(case, flush)
        except RuntimeError as error:
            row["error"] = str(error).splitlines()[0]
        with target.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
