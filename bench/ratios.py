"""Ratios of times with their intervals, clustered by process, and what they allow to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.protocol import NATIVE, OURS, TWIN, Race

Verdict = Literal["faster", "slower", "same"]
FEWEST_PROCESSES = 2
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """How many times one goes into the other: above 1, ours is faster.

    `logs` hold each process's median logarithm of the ratio, block by block. Blocks of one process share its memory
    layout and what else the machine did meanwhile, so that they do not count singly: `median` is the geometric mean of
    the processes' medians, with their 95 % t interval. `won` is the share of blocks above 1.
    """

    median: float
    low: float
    high: float
    won: float
    logs: tuple[float, ...]

    @staticmethod
    def of(numerators: Sequence[NDArray[np.float64]], denominators: Sequence[NDArray[np.float64]]) -> Ratio:
        """Of two entrants' seconds: an array (blocks,) from each process."""
        logs = [np.log(above / below) for above, below in zip(numerators, denominators, strict=True)]
        medians = tuple(float(np.median(values)) for values in logs)
        return Ratio(*exponential_interval(medians), float(np.mean(np.concatenate(logs) > 0)), medians)


@dataclass(frozen=True)
class Comparison:
    """Ours against another. `band` is the factor by which ours may differ from ours itself in the same blocks."""

    ratio: Ratio
    band: float

    @property
    def verdict(self) -> Verdict:
        return verdict(self.ratio.low, self.ratio.high, self.band)


def compare(races: Sequence[Race], other: str = NATIVE, part: str = "step") -> Comparison:
    """The comparison of ours with `other`, from one race in each of at least two processes."""

    def ratio(name: str) -> Ratio:
        return Ratio.of([race.part(name, part) for race in races], [race.part(OURS, part) for race in races])

    same = ratio(TWIN)
    return Comparison(ratio(other), max(same.high, 1 / same.low))


def verdict(low: float, high: float, band: float) -> Verdict:
    """Said is only what clears the band; all else is the same."""
    if low > band:
        return "faster"
    return "slower" if high < 1 / band else "same"


def exponential_interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean with its 95 % t interval, from the logarithms of independent values.

    Raises:
        ValueError: fewer than two values, of which no interval can be told.
    """
    if len(logs) < FEWEST_PROCESSES:
        raise ValueError(f"an interval needs at least {FEWEST_PROCESSES} processes, not {len(logs)}")
    mean = float(np.mean(logs))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1)) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def geometric_mean(ratios: Sequence[Ratio]) -> tuple[float, float, float]:
    """Over cases, with the 95 % t interval of the processes' own means; they must be the same processes."""
    return exponential_interval(np.mean([ratio.logs for ratio in ratios], axis=0))
