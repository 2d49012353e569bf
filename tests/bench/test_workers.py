"""Processes of their own: what they return, and that what goes wrong in them is heard here."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import torch

from bench import workers
from bench.cases import Recurrent
from bench.clocks import WallClock
from bench.protocol import NATIVE, OURS, TWIN, Competitor, Problem, WrongAnswer
from bench.results import rows_of
from bench.workers import Conditions, Measurement, Workers, measure_here


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


def measured_as_on_cuda(monkeypatch: pytest.MonkeyPatch, seed: int) -> Measurement:
    """With a clock for steps in parts, and one for whole steps such as those of graphs."""

    def whole(own: Competitor) -> Competitor:
        return Competitor(lambda x: own.run(x)[0], answer=own.answer)

    def replayed(problem: Problem) -> Problem:
        return replace(problem, competitors={name: whole(own) for name, own in problem.competitors.items()})

    monkeypatch.setattr(workers, "_keep", lambda conditions: None)
    monkeypatch.setattr(workers, "_clocks", lambda device: {"events": WallClock(), "graph": WallClock()})
    monkeypatch.setattr(workers, "replayed", replayed)
    case = Recurrent("GRU", "train", *SHAPE)
    return measure_here(case, 0.01, seed, Conditions(torch.get_num_threads()), checked=seed > 0)


def test_what_is_held_is_told_where_graphs_are_replayed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured_as_on_cuda(monkeypatch, 0)
    assert [race.seconds[OURS].shape[1] for race in found.races.values()] == [2, 1]
    assert found.held_bytes[OURS] > 0


def test_a_graph_that_one_process_could_not_record_costs_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [measured_as_on_cuda(monkeypatch, seed) for seed in range(2)]
    case, conditions = Recurrent("GRU", "train", *SHAPE), Conditions(1, "cuda")
    found = [replace(measurement, limits=None) for measurement in found]
    assert {row.clock for row in rows_of(case, found, conditions)} == {"events", "graph"}
    del found[1].races["graph"]
    assert {row.clock for row in rows_of(case, found, conditions)} == {"events"}
