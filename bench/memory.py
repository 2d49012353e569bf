"""What a step holds for its backward pass: the bytes behind all tensors that autograd keeps, at most at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from bench.protocol import Competitor


class _Held:
    """A tensor that autograd keeps; it counts as long as this lives."""

    def __init__(self, tensor: torch.Tensor, ledger: _Ledger) -> None:
        self.tensor, self.ledger = tensor, ledger
        self.storage = tensor.untyped_storage()
        ledger.add(self.storage.data_ptr(), self.storage.nbytes())

    def __del__(self) -> None:
        self.ledger.remove(self.storage.data_ptr())


class _Ledger:
    """Storages held now, each counted once however many tensors lie in it, and the most that was held."""

    def __init__(self) -> None:
        self.holders: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def add(self, place: int, size: int) -> None:
        self.holders[place] += 1
        self.sizes[place] = size
        self.most = max(self.most, sum(self.sizes.values()))

    def remove(self, place: int) -> None:
        self.holders[place] -= 1
        if not self.holders[place]:
            del self.sizes[place]


def held_bytes(competitor: Competitor, x: Any) -> int:
    """Of one step of a competitor that computes with torch, weights and input included; 0 where autograd is off."""
    ledger = _Ledger()
    with saved_tensors_hooks(lambda tensor: _Held(tensor, ledger), lambda held: held.tensor):
        competitor.run(x)
    return ledger.most
