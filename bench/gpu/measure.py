"""Times the fused ops against torch.nn on the GPU, paired: `python -m bench.gpu.measure FILE`.

Appends one JSON line a case to FILE. A side whose gradients are further from float64 than those of torch's own ops
would allow is not timed. All sides of a case run in random order with a cold L2 cache, recurrent ones as replays of
CUDA graphs, and are timed by events; the ratio is the median over rounds of native time / ours, where native is the
fastest of torch's own ways. Beside it stands the ratio of wall times as Python queues the steps. Recurrent cases also
tell the time of every design that the kernels have, so that the rules which choose among them and torch's own ops can
be written from measurements.
"""

from __future__ import annotations

import json
import math
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

PAIRS, SECONDS_A_CASE, SECONDS_EAGER, EAGER_IN_A_ROW = 15, 0.8, 0.1, 3
MOST_CHECKED = 8  # models of an ensemble
PAUSE_CYCLES = 6_000_000  # some 3 ms: longer than Python takes to queue a step of a convolution block
DESIGN = "RECURVE_CUDA_DESIGN"
DEVICE = "cuda"  # tests rehearse elsewhere
UNIT = {"tf32": 2**-11, "bfloat16": 2**-8}  # what one rounding can change
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
    """Ensembles last: they take longest, and a limit on time cuts from the end."""
    for dtype in ("tf32", "bfloat16"):
        for batch, channels, outputs, size in ((128, 1, 16, 28), (128, 3, 32, 32), (64, 3, 32, 64)):
            yield Block(dtype, batch, channels, outputs, size, 3)
        for kernel in (5, 7):
            yield Block(dtype, 64, 64, 64, 32, kernel, groups=64, pool="none")
        yield Block(dtype, 64, 64, 64, 32, 3, wide=True)
    for op, dtype in product(("gru", "lstm"), ("bfloat16", "tf32")):
        for hidden, batch, steps in ((256, 16, 50), (256, 128, 500), (512, 64, 200), (1024, 16, 200), (1024, 128, 50)):
            yield Case(op, dtype, steps, batch, hidden, hidden)
    for op, hidden in product(("gru", "lstm"), (32, 64, 128)):
        for dtype in ("tf32", "bfloat16"):
            yield Case(op, dtype, 30, 32, 3, hidden, models=128)


def sides(case: Case | Block) -> dict[str, Step]:
    """One training step (forward and all gradients), which returns the gradients: "exact" in float64, those whose names
    begin with "native" as torch has it, "ours" as forced, and those that begin with "chosen" as the selector has it."""
    return block_sides(case) if isinstance(case, Block) else recurrent_sides(case)


def block_sides(case: Block) -> dict[str, Step]:
    shape = (case.outputs, case.channels // case.groups, case.kernel, case.kernel)
    x = torch.randn(case.batch, case.channels, case.size, case.size, device=DEVICE, dtype=case.type)
    weight = torch.randn(shape, device=DEVICE, dtype=case.type) / math.prod(shape[1:]) ** 0.5
    tensors = [x, weight, torch.zeros(case.outputs, device=DEVICE, dtype=case.type)]
    size = case.size // (1 if case.pool == "none" else 2)
    dy = torch.randn(case.batch, case.outputs, size, size, device=DEVICE, dtype=case.type)

    def through(backend: Backend, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Step:
        def own(t: Tensor) -> Tensor:
            return t.to(dtype).contiguous(memory_format=layout if t.dim() == 4 else torch.contiguous_format)

        leaves, own_dy = [own(t).requires_grad_() for t in tensors], own(dy)

        def step() -> list[Tensor]:
            with recurve.backend(backend):
                y = recurve.ops.conv_block(
                    *leaves,
                    padding=case.kernel // 2,
                    groups=case.groups,
                    pool=case.pool,  # type: ignore[arg-type]
                )
            return list(torch.autograd.grad(y, leaves, own_dy))

        return step

    return {
        "exact": through("native", torch.float64),
        "native": through("native", case.type),
        "native channels last": through("native", case.type, torch.channels_last),
        "ours": through("fused", case.type),
        "chosen": through("auto", case.type),
        "chosen channels last": through("auto", case.type, torch.channels_last),
    }


def recurrent_sides(case: Case) -> dict[str, Step]:
    options: dict[str, Any] = {"device": DEVICE, "dtype": case.type}
    ours = [getattr(recurve.nn, case.op.upper())(case.inputs, case.hidden, **options) for _ in range(case.models)]
    x = torch.randn(case.models, case.steps, case.batch, case.inputs, **options)
    dy = torch.randn(case.models, case.steps, case.batch, case.hidden, **options)
    stacked, _ = stack_module_state(ours)
    template = ours[0]

    def output(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(template, parameters, (inputs,))[0]

    def through(backend: Backend) -> Step:
        def step() -> list[Tensor]:
            with recurve.backend(backend):
                if case.models > 1:
                    return list(torch.autograd.grad(torch.vmap(output)(stacked, x), list(stacked.values()), dy))
                return list(torch.autograd.grad(template(x[0])[0], list(template.parameters()), dy[0]))

        return step

    def native(dtype: torch.dtype, models: int) -> Step:
        theirs = []
        for module in ours[:models]:
            theirs.append(getattr(torch.nn, case.op.upper())(case.inputs, case.hidden, device=DEVICE, dtype=dtype))
            theirs[-1].load_state_dict(module.state_dict())
        own_x, own_dy = x.to(dtype), dy.to(dtype)

        def step() -> list[Tensor]:
            of_models = [
                torch.autograd.grad(module(inputs)[0], list(module.parameters()), d)
                for module, inputs, d in zip(theirs, own_x, own_dy, strict=False)
            ]
            return [gradient for gradients in of_models for gradient in gradients]

        return step

    return {
        "exact": native(torch.float64, MOST_CHECKED),
        "native": native(case.type, case.models),
        "ours": through("fused"),
        "chosen": through("auto"),
    }


def error(found: list[Tensor], exact: list[Tensor], models: int) -> float:
    """The largest of the gradients' errors, each in units of its norm over the models that `exact` has."""
    each = len(exact) // models
    if len(found) == each and models > 1:  # models beside each other
        found = [gradient for of_model in zip(*(g[:models] for g in found), strict=True) for gradient in of_model]

    def whole(gradients: list[Tensor], which: int) -> Tensor:
        return torch.stack([g.double() for g in gradients[which : len(exact) : each]])

    pairs = [(whole(found, i), whole(exact, i)) for i in range(each)]
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def gate(case: Case | Block, steps: dict[str, Step]) -> dict[str, float]:
    """Errors of all sides; raises `RuntimeError` where ours is wrong."""
    models = min(case.models, MOST_CHECKED) if isinstance(case, Case) else 1
    with torch.backends.cudnn.flags(benchmark=False, allow_tf32=torch.backends.cudnn.allow_tf32):
        exact = steps["exact"]()
    errors = {f"error {name}": error(step(), exact, models) for name, step in steps.items() if name != "exact"}
    allowed = 2 * errors["error native"] + 4 * UNIT[case.dtype]
    if isinstance(case, Block) and case.pool == "max":  # where rounding turns a maximum, its gradient goes elsewhere
        allowed += 2 * UNIT[case.dtype] ** 0.5
    for name in steps.keys() - {"exact", "native", "native channels last"}:
        if not errors[f"error {name}"] <= allowed:  # NaN is wrong too
            raise RuntimeError(f"{name} is wrong: {errors}, allowed {allowed:.2g}")
    return errors


@dataclass(frozen=True)
class Timed:
    """A step as it is timed: the replay of its CUDA graph, or queued while the GPU pauses, so that none of it waits for
    the CPU."""

    run: Step
    captured: bool


def ready(step: Step, *, capture: bool = True) -> Timed:
    """Warmed up, and captured unless that is impossible or not wanted: cuDNN benchmarks convolutions, and some of what
    it chooses cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    if not capture:
        step()
        return Timed(step, captured=False)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:
        torch.cuda.synchronize()
        return Timed(step, captured=False)
    return Timed(graph.replay, captured=True)


def milliseconds(timed: Timed, flush: Tensor) -> float:
    """Of one step, after the L2 cache was overwritten."""
    flush.zero_()
    if not timed.captured:
        torch.cuda._sleep(PAUSE_CYCLES)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    timed.run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def eager_milliseconds(step: Step) -> float:
    """Wall time of one step as Python queues it, one after the other."""
    start, steps = time.perf_counter(), 0
    while steps < 1 or time.perf_counter() - start < SECONDS_EAGER:
        for _ in range(EAGER_IN_A_ROW):
            step()
        torch.cuda.synchronize()
        steps += EAGER_IN_A_ROW
    return 1e3 * (time.perf_counter() - start) / steps


def times_of_designs(case: Case, step: Step, flush: Tensor) -> dict[str, float]:
    """Milliseconds of our side by design, those that serve; a block is not for very many units."""
    found = {}
    for design in ("block", "grid", "steps") if case.hidden <= 256 else ("grid", "steps"):
        os.environ[DESIGN] = design
        try:
            timed = ready(step)
            found[design] = statistics.median(milliseconds(timed, flush) for _ in range(5))
        except RuntimeError as error:
            if DESIGN not in str(error):
                raise
        finally:
            del os.environ[DESIGN]
    return found


def measured(case: Case | Block, flush: Tensor) -> dict[str, Any]:
    """Errors and times of all sides, and the paired ratios of native time / ours and native time / that as chosen."""
    steps = sides(case)
    row: dict[str, Any] = gate(case, steps)
    del steps["exact"]
    timed = {name: ready(step, capture=isinstance(case, Case)) for name, step in steps.items()}
    rounds: list[dict[str, float]] = []
    start = time.monotonic()
    while len(rounds) < PAIRS and (len(rounds) < 3 or time.monotonic() - start < SECONDS_A_CASE):
        names = random.sample(list(timed), len(timed))
        rounds.append({name: milliseconds(timed[name], flush) for name in names})
    row |= {"pairs": len(rounds), "not_captured": [name for name, one in timed.items() if not one.captured]}
    medians = {name: statistics.median(r[name] for r in rounds) for name in steps}
    row |= {f"{name}_ms": median for name, median in medians.items()}
    native = min((name for name in medians if name.startswith("native")), key=medians.__getitem__)
    row["ratio"] = statistics.median(r[native] / r["ours"] for r in rounds)
    row["ratio_chosen"] = min(  # for inputs of either layout, against torch's own way with it
        statistics.median(r[name] / r[name.replace("native", "chosen")] for r in rounds)
        for name in medians
        if name.startswith("native")
    )
    row["ratio_eager"] = eager_milliseconds(steps["native"]) / eager_milliseconds(steps["chosen"])
    if isinstance(case, Case):
        row["designs_ms"] = times_of_designs(case, steps["ours"], flush)
    return row


def main(target: Path) -> int:
    torch.manual_seed(0)
    random.seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    failed = 0
    for case in cases():
        row: dict[str, Any] = {"group": case.group, **vars(case)}
        try:
            row |= measured(case, flush)
        except Exception as problem:  # noqa: BLE001 -- it must cost no other case
            failed += 1
            row["error"] = str(problem).splitlines()[0]
        with target.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(row, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
