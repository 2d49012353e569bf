"""Processes of their own: what they return, and that what goes wrong in them is heard here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch

from bench.cases import Recurrent
from bench.protocol import NATIVE, OURS, TWIN, Competitor, Problem, WrongAnswer
from bench.workers import Conditions, Workers


@dataclass(frozen=True)
class Planted(Recurrent):
    """A case that goes wrong in a process."""

    def problem(self, seed: int = 0, device: str = "cpu") -> Problem:
        problem = super().problem(seed, device)

        def sets_threads(sample: object) -> object:
            torch.set_num_threads(2)
            return problem.competitors[NATIVE].forward(sample)

        def dies(sample: object) -> object:
            os._exit(1)

        run = {1: sets_threads, 2: dies}[self.layers]
        return Problem(problem.samples, {**problem.competitors, "a peer": Competitor(run)}, problem.reference)


SHAPE = (5, 2, 3, 8)
CONDITIONS = Conditions(threads=1)


def test_every_process_measures_on_its_own_inputs_and_one_that_fails_does_not_end_the_others() -> None:
    with Workers(2) as workers:
        with pytest.raises(WrongAnswer, match="a competitor has set 2 threads in place of 1"):
            workers.measure(0, Planted("GRU", "infer", *SHAPE), 0.01, CONDITIONS)
        with pytest.raises(Exception, match="terminated abruptly"):
            workers.measure(0, Planted("GRU", "infer", *SHAPE, 2), 0.01, CONDITIONS)
        found = [workers.measure(number, Recurrent("GRU", "train", *SHAPE), 0.01, CONDITIONS) for number in range(2)]
    for measurement in found:
        race = measurement.races["wall"]
        assert set(race.seconds) == {OURS, TWIN, NATIVE}
        assert race.seconds[OURS].shape[1] == 2
        assert measurement.others is None or 0 <= measurement.others <= 1
    assert found[0].held_bytes[OURS] > 0
    assert found[1].held_bytes == {}  # once is enough
