"""A shared machine with a clock of its own, which only the competitors move: what the harness says of known speeds."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.clocks import WallClock
from bench.protocol import Competitor, Problem, Race, measure
from bench.ratios import Comparison, compare

SAMPLES = [(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]
PROCESSES = 5


class Machine:
    """Each call takes its time, times drift, times noise; each competitor has its luck with a process's memory."""

    def __init__(self, seed: int, noise: float = 0.1, drift: float = 1.0, luck: float = 0.01) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.noise, self.drift, self.luck = noise, drift, luck
        self.clock = WallClock(lambda: self.now)

    def spend(self, seconds: float) -> None:
        self.now += seconds * self.drift**self.now * self.random.lognormvariate(0, self.noise)

    def competitor(self, seconds: float, backward_seconds: float | None = None) -> Competitor:
        """One that answers rightly and takes so many seconds."""
        luck = self.random.lognormvariate(0, self.luck)

        def forward(sample: tuple[Tensor, ...]) -> list[Tensor]:
            self.spend(seconds * luck)
            return [sample[0] * 2]

        def backward(sample: tuple[Tensor, ...], result: list[Tensor]) -> list[Tensor]:
            self.spend((backward_seconds or 0.0) * luck)
            return result

        return Competitor(forward, backward if backward_seconds is not None else None)

    def problem(self, ours: float, native: float) -> Problem:
        competitors = {"recurve": self.competitor(ours), "torch.nn": self.competitor(native)}
        return Problem(SAMPLES, competitors, Competitor(lambda sample: [sample[0] * 2]))


def races(ours: float, native: float, seed: int = 0, seconds: float = 1.0, **kind: float) -> list[Race]:
    """One in each of five processes, which share `seconds`."""
    found = []
    for process in range(PROCESSES):
        machine = Machine(1000 * seed + process, **kind)
        found.append(measure(machine.problem(ours, native), seconds / PROCESSES, process, machine.clock))
    return found


def comparisons(ours: float, native: float, machines: int = 40, **kind: float) -> Sequence[Comparison]:
    return [compare(races(ours, native, seed, **kind)) for seed in range(machines)]
