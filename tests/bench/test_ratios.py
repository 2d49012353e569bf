"""What is said of two speeds, on machines where they are known."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
import torch
from machines import SAMPLES, comparisons, races

from bench.protocol import Competitor, Problem, measure
from bench.ratios import Ratio, compare, exponential_interval, geometric_mean, verdict


def verdicts(ours: float, native: float, **kind: float) -> Counter[str]:
    return Counter(comparison.verdict for comparison in comparisons(ours, native, **kind))


def test_equal_work_is_called_the_same() -> None:
    assert verdicts(ours=0.002, native=0.002)["same"] >= 39


def test_the_same_code_under_two_names_lies_within_the_band() -> None:
    within = [
        1 / comparison.band <= comparison.ratio.median <= comparison.band
        for comparison in comparisons(0.002, 0.002, luck=0.0)
    ]
    assert sum(within) >= 38


def test_a_planted_slowdown_of_5_percent_is_detected() -> None:
    assert verdicts(ours=0.0021, native=0.002, noise=0.02, luck=0.003) == {"slower": 40}


def test_a_planted_speedup_of_5_percent_is_detected() -> None:
    assert verdicts(ours=0.002, native=0.0021, noise=0.02, luck=0.003) == {"faster": 40}


def test_on_a_noisy_machine_a_slowdown_of_30_percent_is_detected() -> None:
    assert verdicts(ours=0.0026, native=0.002, noise=0.1, luck=0.02) == {"slower": 40}


def test_a_machine_that_slows_down_meanwhile_does_not_move_the_ratio() -> None:
    drifting = races(ours=0.001, native=0.002, noise=0.05, drift=1e6, luck=0.0)
    ours = drifting[0].part("recurve", "step")
    assert ours[-10:].mean() > 2 * ours[:10].mean()
    assert compare(drifting).ratio.median == pytest.approx(2, rel=0.02)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    """Each process has its luck: many blocks of few processes tell less than their number."""
    found = comparisons(ours=0.01, native=0.02, machines=200, luck=0.03, noise=0.05, seconds=0.5)
    held = sum(comparison.ratio.low <= 2 <= comparison.ratio.high for comparison in found)
    assert 180 <= held <= 199


def test_the_share_of_blocks_won_is_counted_over_all_processes() -> None:
    ratio = Ratio.of([np.array([2.0, 2.0]), np.array([2.0, 0.5])], [np.ones(2), np.ones(2)])
    assert ratio.won == 0.75
    assert ratio.logs == pytest.approx((math.log(2), 0.0))
    assert ratio.median == pytest.approx(math.sqrt(2))


def test_the_interval_is_the_t_interval_of_the_processes() -> None:
    mean, low, high = exponential_interval([0.1, 0.2, 0.3])
    half = 4.302652729749462 * 0.1 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((math.exp(0.2), math.exp(0.2 - half), math.exp(0.2 + half)))


def test_one_process_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 processes, not 1"):
        exponential_interval([0.1])


def test_the_geometric_mean_of_twice_and_half_is_one_whatever_the_process() -> None:
    twice, half = (Ratio(r, r, r, 1.0, (math.log(r),) * 3) for r in (2.0, 0.5))
    assert geometric_mean([twice, half]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1.04, 2, "same"), (1.06, 2, "faster"), (0.5, 0.96, "same"), (0.5, 0.94, "slower")]
)
def test_only_what_clears_the_band_is_said(low: float, high: float, said: str) -> None:
    assert verdict(low, high, band=1.05) == said


@pytest.mark.slow
def test_on_this_machine_a_planted_slowdown_of_5_percent_is_detected() -> None:
    def busy(seconds: float) -> Competitor:
        def run(sample: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass
            return [sample[0] * 2]

        return Competitor(run)

    competitors = {"recurve": busy(0.0021), "torch.nn": busy(0.002)}
    problem = Problem(SAMPLES, competitors, Competitor(lambda sample: [sample[0] * 2]))
    comparison = compare([measure(problem, 0.5, seed) for seed in range(5)])
    assert comparison.ratio.median == pytest.approx(1 / 1.05, rel=0.01)
    assert comparison.verdict == "slower"
