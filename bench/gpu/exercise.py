"""Runs every kernel on small odd shapes: watched by compute-sanitizer, or many times to see that results repeat."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

import recurve
from bench.gpu import PARTS
from recurve import ops

DEVICE = "cuda"  # tests rehearse elsewhere
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {}),
    ("gru", {}),
    ("gru", {"reset": "before"}),
    ("rnn", {"activation": "relu", "leak": 0.3}),
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sequence(op: str, options: dict[str, Any], dtype: torch.dtype, models: int, hidden: int) -> Callable[[], Any]:
    """A call of a recurrent op, forward and backward, that returns all outputs and gradients."""
    steps, batch, inputs, gates = 5, 19, 3, GATES[op] * hidden
    lead = (models,)
    shapes: list[tuple[int, ...]] = [(*lead, steps, batch, inputs)] + [(*lead, batch, hidden)] * (
        2 if op == "lstm" else 1
    )
    shapes += [(*lead, gates, inputs), (*lead, gates, hidden), (*lead, gates), (*lead, gates)]
    tensors = [(0.3 * torch.randn(s, device=DEVICE)).to(dtype).requires_grad_() for s in shapes]
    lengths = torch.randint(0, steps + 1, (batch,), device=DEVICE)
    resets = torch.rand(steps, batch, device=DEVICE) < 0.3

    def call() -> list[Tensor]:
        with recurve.backend("fused"):
            outputs = getattr(ops, op)(*tensors, lengths=lengths, resets=resets, reverse=True, **options)
        return [*outputs, *torch.autograd.grad([o.square().sum() for o in outputs], tensors)]

    return call


def block(options: dict[str, Any], dtype: torch.dtype, models: int, channels: int, outputs: int) -> Callable[[], Any]:
    """A call of the convolution block, forward and backward, that returns its output and gradients."""
    groups = options.get("groups", 1)
    shapes = [(models, 3, channels, 13, 11), (models, outputs, channels // groups, 3, 5), (models, outputs)]
    tensors = [(0.3 * torch.randn(s, device=DEVICE)).to(dtype).requires_grad_() for s in shapes]

    def call() -> list[Tensor]:
        with recurve.backend("fused"):
            y = ops.conv_block(*tensors, **options)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    return call


BLOCKS: list[tuple[int, int, dict[str, Any]]] = [
    (3, 5, {"padding": 1, "pool": "max"}),
    (3, 9, {"pool": "average", "activation": "silu", "pool_size": (3, 2)}),
    (5, 5, {"groups": 5, "padding": 2, "pool": "none", "activation": "tanh"}),
    (4, 6, {"groups": 2, "stride": 2, "dilation": (1, 2), "padding": 2, "pool": "max", "pool_size": (2, 1)}),
    (9, 35, {"padding": 2, "pool": "average"}),  # on tensor cores, where the type allows it
]


def calls(dtypes: Sequence[torch.dtype]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Named calls that reach every kernel, and the part that each belongs to."""
    for dtype in dtypes:
        for op, options in OPTIONS:
            for design, models, hidden in (("block", 3, 13), ("block", 2, 70), ("grid", 2, 70), ("steps", 1, 37)):
                yield (
                    f"{op} {options} {dtype} {design} H {hidden}",
                    design,
                    sequence(op, options, dtype, models, hidden),
                )
        for channels, outputs, options in BLOCKS:
            yield f"conv_block {options} {dtype}", "convolution", block(options, dtype, 2, channels, outputs)


@contextmanager
def products_without_cublas() -> Iterator[None]:
    """Torch's products around the kernels are sums over elementwise ones, by kernels that the sanitizers follow.

    Those of cuBLAS for Hopper copy in bulk: initcheck does not see that they write, and racecheck has ended with an
    error of its own beside them.
    """

    def bmm(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)

    ways = {
        "bmm": bmm,
        "bmm.out": lambda a, b, *, out: out.copy_(bmm(a, b)),
        "baddbmm_": lambda onto, a, b, *, beta=1, alpha=1: onto.add_(bmm(a, b)),
        "addmm": lambda onto, a, b, *, beta=1, alpha=1: onto + bmm(a[None], b[None])[0],
    }
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, way in ways.items():
            library.impl(name, way, torch.device(DEVICE).type.upper())
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="repeats, over all calls together; default: %(default)s")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="the parts to run; default: all")
    parser.add_argument(
        "--watched",
        action="store_true",
        help="for sanitizers: float32 and bfloat16, no product by cuBLAS, each call's name before its complaints",
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    named = [c for c in calls(DTYPES[::2] if arguments.watched else DTYPES) if c[1] in arguments.only]
    share = -(-arguments.repeats // len(named))
    with products_without_cublas() if arguments.watched else nullcontext():
        for name, part, call in named:
            if part != "convolution":
                os.environ["RECURVE_CUDA_DESIGN"] = part
            if arguments.watched:
                print(name, flush=True)
            first = call()
            for _ in range(share):
                for expected, found in zip(first, call(), strict=True):
                    if not torch.equal(expected, found):
                        raise SystemExit(f"{name}: a repeat gives other results")
            if arguments.watched:
                torch.cuda.synchronize()
    torch.cuda.synchronize()
    print(f"{len(named)} calls, {share} repeats each: same results")


if __name__ == "__main__":
    main()
