"""The protocol within a process: who is timed, on what, in which order, and who is refused."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from machines import SAMPLES, Machine
from torch import Tensor

from bench import protocol
from bench.protocol import (
    FEWEST_BLOCKS,
    OURS,
    TF32_COARSER,
    TWIN,
    Competitor,
    Problem,
    Sample,
    WrongAnswer,
    check,
    measure,
    race,
)

Answer = Callable[[Sample], list[Tensor]]


def problem_with(name: str, forward: Answer) -> Problem:
    problem = Machine(seed=0).problem(0.001, 0.001)
    return replace(problem, competitors={**problem.competitors, name: Competitor(forward)})


def test_a_slow_case_still_gets_enough_blocks() -> None:
    machine = Machine(seed=0)
    result = measure(machine.problem(ours=5, native=9), 1.0, clock=machine.clock)
    assert result.part(OURS, "step").shape == (FEWEST_BLOCKS,)


def test_a_block_runs_every_entrant_once_on_one_input_and_each_goes_first_about_as_often() -> None:
    machine = Machine(seed=0)
    calls: list[tuple[str, float]] = []

    def entrant(name: str) -> Competitor:
        def run(sample: Sample) -> list[Tensor]:
            machine.spend(0.001)
            calls.append((name, float(sample[0].sum())))
            return [sample[0]]

        return Competitor(run)

    names = ["a", "b", "c"]
    entrants = {name: entrant(name) for name in names}
    result, _ = race(entrants, SAMPLES, SAMPLES[-1], 1.0, machine.clock, random.Random(0))
    blocks = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert all(sorted(name for name, _ in block) == names for block in blocks)
    assert all(len({total for _, total in block}) == 1 for block in blocks)
    first = Counter(block[0][0] for block in blocks)
    assert all(0.25 < first[name] / len(blocks) < 0.42 for name in names)
    timed = blocks[-len(result.turns["a"]) :]
    assert all(block[result.turns[name][i]][0] == name for i, block in enumerate(timed) for name in names)


def test_no_input_is_ever_seen_twice() -> None:
    machine = Machine(seed=0)
    seen: list[bytes] = []

    def run(sample: Sample) -> list[Tensor]:
        machine.spend(0.001)
        seen.append(sample[0].numpy().tobytes())
        return [sample[0]]

    race({"a": Competitor(run)}, SAMPLES, SAMPLES[-1], 0.2, machine.clock, random.Random(0))
    assert len(seen) > 100
    assert len(set(seen)) == len(seen)


def test_forward_and_backward_are_timed_apart_and_add_up_to_the_step() -> None:
    machine = Machine(seed=0, noise=0.0, luck=0.0)
    problem = machine.problem(1, 1)
    two_parts = {name: machine.competitor(0.001, backward_seconds=0.002) for name in problem.competitors}
    result = measure(replace(problem, competitors=two_parts), 0.1, clock=machine.clock)
    assert result.part(OURS, "forward") == pytest.approx(0.001)
    assert result.part(OURS, "backward") == pytest.approx(0.002)
    assert result.part(OURS, "step") == pytest.approx(0.003)


def test_the_first_call_is_told_apart_from_the_others() -> None:
    problem = Machine(seed=0).problem(0.0, 0.0)
    compiled: list[bool] = []

    def compiles(sample: Sample) -> list[Tensor]:
        if not compiled:
            time.sleep(0.05)
        compiled.append(True)
        return [sample[0] * 2]

    result = measure(replace(problem, competitors={**problem.competitors, "jit": Competitor(compiles)}), 0.01)
    assert result.first_seconds["jit"] > 0.05
    assert result.part("jit", "step").max() < 0.05


WRONG: dict[str, Answer] = {
    "zeros": lambda sample: [sample[0] * 0],
    "not a number": lambda sample: [sample[0] * 2 + torch.nan],
    "one element off by a thousandth": lambda sample: [sample[0] * 2 + 2e-3 * (torch.arange(12).view(4, 3) == 5)],
    "another shape": lambda sample: [(sample[0] * 2)[:1]],
    "a tensor too few": lambda sample: [],
    "double precision": lambda sample: [sample[0].double() * 2],
    "half precision": lambda sample: [(sample[0].bfloat16() * 2).float()],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["recurve", "a peer"])
def test_a_wrong_answer_is_refused_before_anything_is_timed(name: str, wrong: str) -> None:
    with pytest.raises(WrongAnswer, match=rf"^{name}.*not timed"):
        check(problem_with(name, WRONG[wrong]))


def test_rounding_is_no_wrong_answer() -> None:
    check(problem_with("recurve", lambda sample: [sample[0] * 2 * (1 + 1e-6)]))


def test_coarser_rounding_is_allowed_on_cuda_alone_and_with_tf32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert (protocol.coarser("cpu"), protocol.coarser("cuda")) == (1, TF32_COARSER)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert protocol.coarser("cuda") == 1


def test_rounding_to_tf32_is_no_wrong_answer_but_more_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "coarser", lambda device: TF32_COARSER)
    check(problem_with("recurve", lambda sample: [sample[0] * 2 * (1 + 2**-11)]))
    with pytest.raises(WrongAnswer, match=r"^recurve is off"):
        check(problem_with("recurve", lambda sample: [sample[0] * 2 * (1 + 2**-8)]))


def caching_by_address() -> Answer:
    known: dict[int, list[Tensor]] = {}
    return lambda sample: known.setdefault(sample[0].data_ptr(), [sample[0] * 2])


def caching_by_shape() -> Answer:
    known: dict[torch.Size, list[Tensor]] = {}
    return lambda sample: known.setdefault(sample[0].shape, [sample[0] * 2])


def skipping_when_watched_no_more() -> Answer:
    calls: list[list[Tensor]] = []

    def run(sample: Sample) -> list[Tensor]:
        if len(calls) < 3:
            calls.append([sample[0] * 2])
        return calls[-1]

    return run


def zeros_when_watched_no_more() -> Answer:
    calls: list[None] = []

    def run(sample: Sample) -> list[Tensor]:
        calls.append(None)
        return [sample[0] * 2 * (len(calls) < 3)]

    return run


@pytest.mark.parametrize(
    "cheat", [caching_by_address, caching_by_shape, skipping_when_watched_no_more, zeros_when_watched_no_more]
)
@pytest.mark.parametrize("name", ["recurve", "a peer"])
def test_a_cheat_that_passes_the_first_check_is_caught_while_it_is_timed(
    cheat: Callable[[], Answer], name: str
) -> None:
    machine = Machine(seed=0)
    problem = machine.problem(0.001, 0.001)
    answer = cheat()

    def run(sample: Sample) -> list[Tensor]:
        machine.spend(0.0001)
        return answer(sample)

    check(replace(problem, competitors={**problem.competitors, name: Competitor(cheat())}))
    with pytest.raises(WrongAnswer, match=rf"^{name}"):
        measure(replace(problem, competitors={**problem.competitors, name: Competitor(run)}), 0.5, clock=machine.clock)


def test_remembering_answers_by_the_input_s_values_gains_nothing() -> None:
    known: dict[bytes, list[Tensor]] = {}
    hits: list[bool] = []

    def run(sample: Sample) -> list[Tensor]:
        key = sample[0].numpy().tobytes()
        hits.append(key in known)
        return known.setdefault(key, [sample[0] * 2])

    result = measure(problem_with("a peer", run), 0.02)
    timed = len(result.part("a peer", "step"))
    assert not any(hits[-timed:])


def test_work_left_to_another_thread_is_caught() -> None:
    def run(sample: Sample) -> list[Tensor]:
        result = torch.zeros_like(sample[0])
        threading.Timer(0.02, lambda: result.copy_(sample[0] * 2)).start()
        return [result]

    with pytest.raises(WrongAnswer, match=r"^a peer is off"):
        check(problem_with("a peer", run))


def test_work_left_for_after_the_clock_is_caught() -> None:
    def answer(sample: Sample) -> list[Tensor]:
        time.sleep(0.02)
        return [sample[0] * 2]

    problem = Machine(seed=0).problem(0.001, 0.001)
    late = Competitor(lambda sample: sample, answer=answer)
    with pytest.raises(WrongAnswer, match=r"^a peer has no answer when its clock stops"):
        check(replace(problem, competitors={**problem.competitors, "a peer": late}))


def test_ours_runs_again_under_another_name_in_every_block() -> None:
    machine = Machine(seed=0)
    result = measure(machine.problem(0.001, 0.002), 0.1, clock=machine.clock)
    assert result.part(TWIN, "step").shape == result.part(OURS, "step").shape
    assert np.median(result.part(TWIN, "step")) == pytest.approx(np.median(result.part(OURS, "step")), rel=0.1)
