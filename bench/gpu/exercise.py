"""Runs every kernel on small odd shapes: under compute-sanitizer, or many times over to see that results repeat."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import recurve
from recurve import ops

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
    tensors = [(0.3 * torch.randn(s, device="cuda")).to(dtype).requires_grad_() for s in shapes]
    lengths = torch.randint(0, steps + 1, (batch,), device="cuda")
    resets = torch.rand(steps, batch, device="cuda") < 0.3

    def call() -> list[Tensor]:
        with recurve.backend("fused"):
            outputs = getattr(ops, op)(*tensors, lengths=lengths, resets=resets, reverse=True, **options)
        return [*outputs, *torch.autograd.grad([o.square().sum() for o in outputs], tensors)]

    return call


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Named calls that reach every kernel: whole sequences, plain and on tensor cores, and step by step."""
    for op, options in OPTIONS:
        for dtype in DTYPES:
            for models, hidden in ((3, 13), (2, 70), (1, 270)):
                yield f"{op} {options} {dtype} H {hidden}", sequence(op, options, dtype, models, hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="times that each call runs; default: %(default)s")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = True
    named = list(calls())
    share = max(1, repeats // len(named) + 1) if repeats > 1 else 1
    for name, call in named:
        first = call()
        for _ in range(share - 1):
            for expected, found in zip(first, call(), strict=True):
                if not torch.equal(expected, found):
                    raise SystemExit(f"{name}: a repeat gives other results")
    torch.cuda.synchronize()
    print(f"{len(named)} calls, {share} times each: same results")


if __name__ == "__main__":
    main()
