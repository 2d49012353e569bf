"""The paired protocol: which competitor is faster, by how much, and how sure that is on a shared machine."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

Verdict = Literal["faster", "slower", "same"]
Sample = tuple[Tensor, ...]

OURS = "recurve"
TWIN = "recurve again"
NATIVE = "torch.nn"

WARM_UP_BLOCKS = 2
FEWEST_BLOCKS = 6  # below, the order statistics of a median have no 95 % interval
MOST_STRETCHES = 20
ERROR_FLOOR, ERROR_CEILING = 1e-5, 1e-4


class WrongAnswer(AssertionError):
    """A competitor's answer is not that of the float64 reference; it gets no number."""


@dataclass(frozen=True)
class Competitor:
    """Who computes one step: `run` is timed, `answer` makes of its result the tensors that are compared, untimed."""

    run: Callable[[Sample], Any]
    answer: Callable[[Any], Sequence[Tensor]] = tuple


@dataclass(frozen=True)
class Problem:
    """A case made concrete: inputs in float32, competitors by name, and the reference, which takes float64."""

    samples: Sequence[Sample]
    competitors: Mapping[str, Competitor]
    reference: Competitor


@dataclass(frozen=True)
class Ratio:
    """Median over stretches of consecutive blocks of a paired ratio of times, with its 95 % interval.

    `won` is the share of blocks in which the ratio was above 1.
    """

    median: float
    low: float
    high: float
    won: float


@dataclass(frozen=True)
class Comparison:
    """How many times ours goes into the other's time (above 1: ours is faster), and what the machine's noise allows.

    `band` is the factor by which ours differs from ours itself in the same blocks. `seconds` are ours, block by block.
    """

    ratio: Ratio
    band: float
    seconds: NDArray[np.float64]

    @property
    def verdict(self) -> Verdict:
        if self.ratio.low > self.band:
            return "faster"
        return "slower" if self.ratio.high < 1 / self.band else "same"


def compare(
    problem: Problem, seconds: float, other: str = NATIVE, clock: Callable[[], float] = time.perf_counter
) -> Comparison:
    """Check every answer, then time ours, ours again and all others in the same blocks.

    Args:
        seconds: how long to measure; a slow case takes longer, for it gets at least 6 blocks.

    Raises:
        WrongAnswer: a competitor's answer is off by more than rounding explains.
    """
    check(problem)
    runs = {name: competitor.run for name, competitor in problem.competitors.items()}
    times = race({**runs, TWIN: runs[OURS]}, problem.samples, seconds, clock)
    same = paired_ratio(times[TWIN], times[OURS])
    return Comparison(paired_ratio(times[other], times[OURS]), max(same.high, 1 / same.low), times[OURS])


def check(problem: Problem) -> None:
    """Compare outputs and gradients with the float64 reference.

    An error is the largest deviation in a tensor over its largest value. Allowed are four times torch.nn's own error,
    but no less than 1e-5 and no more than 1e-4.

    Raises:
        WrongAnswer: naming the competitor, the tensor and its error.
    """
    sample = problem.samples[0]
    truth = _answer(problem.reference, tuple(t.double() for t in sample))
    answers = {name: _answer(competitor, sample) for name, competitor in problem.competitors.items()}
    for name, answer in answers.items():
        if [t.shape for t in answer] != [t.shape for t in truth]:
            found, expected = ([tuple(t.shape) for t in tensors] for tensors in (answer, truth))
            raise WrongAnswer(f"{name} answers with shapes {found}, the reference with {expected}; it is not timed")
    for index, true in enumerate(truth):
        allowed = min(max(ERROR_FLOOR, 4 * _error(answers[NATIVE][index], true)), ERROR_CEILING)
        for name, answer in answers.items():
            error = _error(answer[index], true)
            if not error <= allowed:
                where = f"tensor {index + 1} of {len(truth)}, shape {tuple(true.shape)}"
                raise WrongAnswer(f"{name} is off by {error:.1e} ({where}; allowed {allowed:.1e}); it is not timed")


def race(
    runs: Mapping[str, Callable[[Sample], Any]],
    samples: Sequence[Sample],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Seconds of every entrant in every block; a block runs all entrants once, on one sample, in random order."""
    order = random.Random(0)
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}

    def block(index: int) -> dict[str, float]:
        sample = samples[index % len(samples)]
        order.shuffle(names)
        measured = {}
        for name in names:
            start = clock()
            runs[name](sample)
            measured[name] = clock() - start
        return measured

    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(WARM_UP_BLOCKS):
            block(index)
        begin = clock()
        index = 0
        while index < FEWEST_BLOCKS or clock() - begin < seconds:
            for name, measured in block(index).items():
                times[name].append(measured)
            index += 1
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(values) for name, values in times.items()}


def paired_ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> Ratio:
    """Ratio of two entrants' times, block by block.

    Neighbouring blocks share what else the machine does, so that blocks do not count singly: they are joined into at
    most 20 stretches of consecutive blocks, and the interval comes from the order statistics of the stretches' medians.
    """
    ratios = numerator / denominator
    stretches = np.array_split(ratios, min(len(ratios), MOST_STRETCHES))
    medians = np.sort([np.median(stretch) for stretch in stretches])
    outside = int(binom.ppf(0.025, len(medians), 0.5))
    low, high = medians[outside - 1], medians[-outside]
    return Ratio(float(np.median(medians)), float(low), float(high), float(np.mean(ratios > 1)))


@torch.no_grad()
def sgemm_rate(size: int = 1024, repeats: int = 5) -> float:
    """The machine's yardstick: multiplications and additions per second of torch's fastest float32 matrix product.

    It is the best of a few runs, on the threads torch may use.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    products: list[Callable[[], Tensor]] = [lambda: torch.mm(a, b)]
    if torch.backends.mkldnn.is_available():  # oneDNN uses AVX-512 on every processor that has it, MKL does not
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    fastest = float("inf")
    for product in products * (1 + repeats):
        start = time.perf_counter()
        product()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def _answer(competitor: Competitor, sample: Sample) -> list[Tensor]:
    return [t.detach().double() for t in competitor.answer(competitor.run(sample))]


def _error(answer: Tensor, truth: Tensor) -> float:
    return float((answer - truth).abs().max() / truth.abs().max().clamp_min(torch.finfo(truth.dtype).tiny))
