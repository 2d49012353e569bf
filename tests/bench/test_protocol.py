"""The harness itself, on a clock that only the competitors move."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bench.protocol import FEWEST_BLOCKS, Competitor, Problem, WrongAnswer, check, compare, race, sgemm_rate

SAMPLES = [(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]


class Machine:
    """A shared machine with a clock of its own: each call takes its time, times drift, times noise."""

    def __init__(self, seed: int, noise: float = 0.1, drift: float = 1.0) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.noise = noise
        self.drift = drift

    def clock(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds * self.drift**self.now * self.random.lognormvariate(0, self.noise)

    def problem(self, ours: float, native: float) -> Problem:
        """Competitors that answer rightly and take so many seconds."""

        def competitor(seconds: float) -> Competitor:
            def run(sample: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
                self.spend(seconds)
                return [sample[0] * 2]

            return Competitor(run)

        return Problem(SAMPLES, {"recurve": competitor(ours), "torch.nn": competitor(native)}, competitor(0))


def verdicts(ours: float, native: float, machines: int = 40, **kind: float) -> Counter[str]:
    results = Counter[str]()
    for seed in range(machines):
        machine = Machine(seed, **kind)
        results[compare(machine.problem(ours, native), 1.0, clock=machine.clock).verdict] += 1
    return results


def test_equal_work_is_called_the_same() -> None:
    assert verdicts(ours=0.002, native=0.002)["same"] >= 39


def test_a_planted_slowdown_of_30_percent_is_detected() -> None:
    assert verdicts(ours=0.0026, native=0.002) == {"slower": 40}


def test_a_planted_speedup_of_30_percent_is_detected() -> None:
    assert verdicts(ours=0.002, native=0.0026) == {"faster": 40}


def test_on_a_calm_machine_a_slowdown_of_5_percent_is_detected() -> None:
    assert verdicts(ours=0.0021, native=0.002, noise=0.02) == {"slower": 40}


def test_a_machine_that_slows_down_meanwhile_does_not_move_the_ratio() -> None:
    machine = Machine(seed=0, noise=0.05, drift=4.0)
    comparison = compare(machine.problem(ours=0.001, native=0.002), 1.0, clock=machine.clock)
    assert comparison.seconds[-20:].mean() > 2 * comparison.seconds[:20].mean()
    assert comparison.ratio.median == pytest.approx(2, rel=0.02)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        machine = Machine(seed)
        ratio = compare(machine.problem(ours=0.01, native=0.02), 1.0, clock=machine.clock).ratio
        held += ratio.low <= 2 <= ratio.high
    assert held >= 185


def test_ours_three_times_as_slow_wins_no_block_and_the_ratio_says_by_how_much() -> None:
    machine = Machine(seed=0, noise=0.01)
    ratio = compare(machine.problem(ours=0.03, native=0.01), 1.0, clock=machine.clock).ratio
    assert ratio.won == 0
    assert ratio.low < 1 / 3 < ratio.high


def test_a_slow_case_still_gets_enough_blocks_for_an_interval() -> None:
    machine = Machine(seed=0)
    comparison = compare(machine.problem(ours=5, native=9), 1.0, clock=machine.clock)
    assert len(comparison.seconds) == FEWEST_BLOCKS
    assert np.isfinite([comparison.ratio.low, comparison.ratio.high, comparison.band]).all()


def test_a_block_runs_every_entrant_once_on_one_sample_and_each_goes_first_about_as_often() -> None:
    machine = Machine(seed=0)
    calls: list[tuple[str, int]] = []

    def entrant(name: str) -> Callable[[tuple[torch.Tensor, ...]], None]:
        def run(sample: tuple[torch.Tensor, ...]) -> None:
            machine.spend(0.001)
            calls.append((name, next(i for i, known in enumerate(SAMPLES) if known is sample)))

        return run

    names = ["a", "b", "c"]
    race({name: entrant(name) for name in names}, SAMPLES, 1.0, machine.clock)
    blocks = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert all(sorted(name for name, _ in block) == names for block in blocks)
    assert all(len({sample for _, sample in block}) == 1 for block in blocks)
    assert {block[0][1] for block in blocks} == set(range(len(SAMPLES)))
    first = Counter(block[0][0] for block in blocks)
    assert all(0.25 < first[name] / len(blocks) < 0.42 for name in names)


WRONG = {
    "zeros": lambda x: [x * 0],
    "not a number": lambda x: [x * 2 + torch.nan],
    "one element off by a thousandth": lambda x: [x * 2 + 2e-3 * (torch.arange(12).view(4, 3) == 5)],
    "another shape": lambda x: [(x * 2)[:1]],
    "a tensor too few": lambda x: [],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["recurve", "torch.nn"])
def test_a_wrong_answer_is_refused_before_anything_is_timed(name: str, wrong: str) -> None:
    machine = Machine(seed=0)
    problem = machine.problem(0.001, 0.001)
    liar = Competitor(lambda sample: WRONG[wrong](sample[0]))
    with pytest.raises(WrongAnswer, match=rf"^{name}.*not timed"):
        compare(Problem(SAMPLES, {**problem.competitors, name: liar}, problem.reference), 1.0)


def test_rounding_is_no_wrong_answer() -> None:
    problem = Machine(seed=0).problem(0.001, 0.001)
    rounded = Competitor(lambda sample: [(sample[0] * 2).double() * (1 + 1e-6)])
    check(Problem(SAMPLES, {**problem.competitors, "recurve": rounded}, problem.reference))


def test_the_yardstick_is_no_slower_than_a_matrix_product_by_hand() -> None:
    a = torch.randn(256, 256)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - start)
    assert sgemm_rate(size=256) > 0.3 * 2 * 256**3 / min(seconds)
