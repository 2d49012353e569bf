"""Processes of their own: what they return, and that what goes wrong in them is heard here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from pretended_gpu import Graph, pretended_gpu

from bench import workers
from bench.cases import Recurrent
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
GRU = Recurrent("GRU", "train", *SHAPE)
CONDITIONS = Conditions(threads=1)


def test_every_process_measures_on_its_own_inputs_and_one_that_fails_does_not_end_the_others() -> None:
    with Workers(2) as workers:
        with pytest.raises(WrongAnswer, match="a competitor has set 2 threads in place of 1"):
            workers.measure(0, Planted("GRU", "infer", *SHAPE), 0.01, CONDITIONS)
        with pytest.raises(Exception, match="terminated abruptly"):
            workers.measure(0, Planted("GRU", "infer", *SHAPE, 2), 0.01, CONDITIONS)
        found = [workers.measure(number, GRU, 0.01, CONDITIONS) for number in range(2)]
    for measurement in found:
        race = measurement.races["wall"]
        assert set(race.seconds) == {OURS, TWIN, NATIVE}
        assert race.seconds[OURS].shape[1] == 2
        assert measurement.others is None or 0 <= measurement.others <= 1
    assert found[0].held_bytes[OURS] > 0
    assert found[1].held_bytes == {}  # once is enough


def measured_on_a_pretended_gpu(monkeypatch: pytest.MonkeyPatch, seed: int = 0, *peers: str) -> Measurement:
    monkeypatch.setattr(workers, "_keep", lambda conditions: None)
    with pretended_gpu():
        return measure_here(GRU, 0.01, seed, Conditions(torch.get_num_threads(), "cuda", peers=peers), checked=seed > 0)


def test_a_gpu_is_measured_by_events_by_waiting_and_by_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured_on_a_pretended_gpu(monkeypatch)
    assert {clock: race.seconds[OURS].shape[1] for clock, race in found.races.items()} == {
        "events": 2,
        "wall": 2,
        "graph": 1,  # forward and backward are replayed together
    }
    assert found.left_out == {}
    assert found.held_bytes[OURS] > 0


def test_a_graph_that_computes_nothing_anew_is_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    with pytest.raises(WrongAnswer, match="is off by"):
        measured_on_a_pretended_gpu(monkeypatch)


def test_a_recorded_yardstick_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured_on_a_pretended_gpu(monkeypatch, 0, "products")
    assert all("products" in race.seconds for race in found.races.values())


def test_a_graph_that_one_process_could_not_record_costs_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [measured_on_a_pretended_gpu(monkeypatch, seed) for seed in range(2)]
    assert {row.clock for row in rows_of(GRU, found, Conditions(1, "cuda"))} == {"events", "wall", "graph"}
    del found[1].races["graph"]
    assert {row.clock for row in rows_of(GRU, found, Conditions(1, "cuda"))} == {"events", "wall"}


def test_work_that_cannot_be_recorded_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(problem: Problem) -> Problem:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(workers, "replayed", refuses)
    found = measured_on_a_pretended_gpu(monkeypatch)
    assert set(found.races) == {"events", "wall"}
    assert found.left_out == {"graph": "operation not permitted when stream is capturing"}
