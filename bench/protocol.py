"""The paired protocol within one process: answers are checked first, then all competitors are timed block by block."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.clocks import Clock, WallClock

Sample = tuple[Tensor, ...]

OURS = "recurve"
TWIN = "recurve again"
NATIVE = "torch.nn"

FEWEST_BLOCKS = 2
WARM_UP_BLOCKS = 2
SLOW_SECONDS = 0.1  # of all first calls: such a case is warm once its answers are checked
ERROR_FLOOR, ERROR_CEILING = 1e-5, 1e-4
TF32_COARSER = 200  # so many times larger errors are allowed where products round to TF32
READY = 1e-3, 0.5  # an answer is there within so many seconds, or within so much of the time of its run
TRIES = 5  # of an answer that seems late: someone else may have had the processor
PAUSE = 0.01  # seconds until one library's idle threads have stopped to spin, and another's may have the processors
SMALLEST_FACTOR = 0.5  # by which a block's inputs differ from those that the problem came with


def coarser(device: str) -> int:
    """By how much larger errors are rounding there than those of float32."""
    return TF32_COARSER if device == "cuda" and torch.backends.cudnn.allow_tf32 else 1


class WrongAnswer(AssertionError):
    """A competitor's answer is not that of the float64 reference, or not there in time; it gets no number."""


@dataclass(frozen=True)
class Competitor:
    """Who computes one step.

    Timed: `forward` of an input, and `backward`, if there is one, of the input and what `forward` returned.
    Not timed: `prepare`, which makes of a sample the competitor's own input, and `answer`, which makes of the last
    result the tensors that are compared; it selects and regroups, and computes nothing.
    `foreign`: it computes on threads of its own, not on torch's.
    `judged`: false of a yardstick, which does only a part of the work and has no answer.
    """

    forward: Callable[[Any], Any]
    backward: Callable[[Any, Any], Any] | None = None
    answer: Callable[[Any], Sequence[Tensor]] = tuple
    prepare: Callable[[Sample], Any] = lambda sample: sample
    foreign: bool = False
    judged: bool = True

    def run(self, x: Any, now: Callable[[], Any] = time.perf_counter) -> tuple[Any, list[Any]]:
        """The result of one step, and the times at its start, between its parts and at its end."""
        marks = [now()]
        result = self.forward(x)
        marks.append(now())
        if self.backward is not None:
            result = self.backward(x, result)
            marks.append(now())
        return result, marks


@dataclass(frozen=True)
class Problem:
    """A case made concrete: inputs in float32, competitors by name, and the reference, which takes float64.

    `models` are torch's modules whose weights all competitors share: from them, peers are made.
    """

    samples: Sequence[Sample]
    competitors: Mapping[str, Competitor]
    reference: Competitor
    models: Sequence[torch.nn.Module] = ()


@dataclass
class Race:
    """Seconds of every entrant's parts, (blocks, parts): forward and backward, or all at once; and its turn, (blocks,).

    `first_seconds` are those of each competitor's first call, which may compile or tune.
    """

    seconds: dict[str, NDArray[np.float64]]
    turns: dict[str, NDArray[np.int64]]
    first_seconds: dict[str, float] = field(default_factory=dict)

    def part(self, name: str, part: str) -> NDArray[np.float64]:
        """Seconds (blocks,) of "forward", "backward" or the whole "step"."""
        seconds = self.seconds[name]
        return seconds.sum(axis=1) if part == "step" else seconds[:, ("forward", "backward").index(part)]


def measure(problem: Problem, seconds: float, seed: int = 0, clock: Clock | None = None, checked: bool = False) -> Race:
    """Check every answer, then time ours, ours again and all others in the same blocks, and check one block's answers.

    Args:
        seconds: how long to measure; a slow case takes longer, for it gets at least 2 blocks.
        seed: of the order within blocks, the inputs' factors and the block that is checked.
        checked: the first check was passed in another process, and is not repeated in this one.

    Raises:
        WrongAnswer: a competitor is off by more than rounding explains, before or while it is timed, or has not
            finished when its clock stops.
    """
    clock = clock or WallClock()
    answers, first_seconds = _first_answers(problem)
    if not checked:
        judge(problem, problem.samples[0], answers)
    entrants = {**problem.competitors, TWIN: problem.competitors[OURS]}
    spot = problem.samples[-1]
    warm_up = WARM_UP_BLOCKS if sum(first_seconds.values()) < SLOW_SECONDS else 0
    result, spotted = race(entrants, problem.samples, spot, seconds, clock, random.Random(seed), warm_up)
    judge(problem, spot, spotted)
    result.first_seconds = first_seconds
    return result


def check(problem: Problem) -> None:
    """Compare outputs and gradients with the float64 reference.

    An error is the largest deviation in a tensor over its largest value. Allowed are four times torch.nn's own error,
    but no less than 1e-5 and no more than 1e-4; with TF32 both are 200 times as large.

    Raises:
        WrongAnswer: naming the competitor, the tensor and its error.
    """
    judge(problem, problem.samples[0], _first_answers(problem)[0])


def _first_answers(problem: Problem) -> tuple[dict[str, list[Tensor]], dict[str, float]]:
    """The judged competitors' answers to the first sample, and the seconds of everyone's first call."""
    answers, seconds = {}, {}
    for name, competitor in problem.competitors.items():
        x = competitor.prepare(problem.samples[0])
        result, marks = competitor.run(x)
        seconds[name] = marks[-1] - marks[0]
        if not competitor.judged:
            continue
        if not _is_ready(competitor, result, seconds[name]):
            _check_ready(name, competitor, x)
        answers[name] = _snapshot(competitor, result)
    return answers, seconds


def judge(problem: Problem, sample: Sample, answers: Mapping[str, Sequence[Tensor]]) -> None:
    """Raise WrongAnswer unless all answers to `sample` are those of the float64 reference, as `check` explains."""
    double = tuple(t.double() if t.is_floating_point() else t for t in sample)
    truth = _snapshot(problem.reference, problem.reference.run(double)[0])
    for name, answer in answers.items():
        if [t.shape for t in answer] != [t.shape for t in truth]:
            found, expected = ([tuple(t.shape) for t in tensors] for tensors in (answer, truth))
            raise WrongAnswer(f"{name} answers with shapes {found}, the reference with {expected}; it is not timed")
    floor, ceiling = (bound * coarser(sample[0].device.type) for bound in (ERROR_FLOOR, ERROR_CEILING))
    for index, true in enumerate(truth):
        allowed = min(max(floor, 4 * _error(answers[NATIVE][index], true)), ceiling)
        for name, answer in answers.items():
            where = f"tensor {index + 1} of {len(truth)}, shape {tuple(true.shape)}"
            error = _error(answer[index], true)
            if not error <= allowed:
                raise WrongAnswer(f"{name} is off by {error:.1e} ({where}; allowed {allowed:.1e}); it is not timed")
            if answer[index].dtype != answers[NATIVE][index].dtype:
                kind = f"{answer[index].dtype}, torch.nn in {answers[NATIVE][index].dtype}"
                raise WrongAnswer(f"{name} answers in {kind} ({where}); it is not timed")


def race(
    entrants: Mapping[str, Competitor],
    samples: Sequence[Sample],
    spot: Sample,
    seconds: float,
    clock: Clock,
    order: random.Random,
    warm_up: int = WARM_UP_BLOCKS,
) -> tuple[Race, dict[str, list[Tensor]]]:
    """Times of all entrants, and their answers to `spot`, which is the input of one block at a random moment.

    A block runs all entrants once, in random order, on one input that is new to them: a sample times a factor drawn for
    the block. It lies where the last one lay, so that neither its values nor its place tell an answer known before.
    Where libraries with threads of their own meet, a turn waits for the last one's threads to sleep, and wakes its own
    with a step on another input.
    """
    names = list(entrants)
    times: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    turns: dict[str, list[int]] = {name: [] for name in names}

    memory = tuple(t.clone() for t in spot)
    mixed = any(entrant.foreign for entrant in entrants.values())
    other_inputs = {name: entrants[name].prepare(samples[0]) for name in names} if mixed else {}

    def block(spotted: bool = False) -> dict[str, tuple[NDArray[np.float64], Any]]:
        sample, factor = (spot, 1.0) if spotted else (order.choice(samples), order.uniform(SMALLEST_FACTOR, 1))
        for place, values in zip(memory, sample, strict=True):
            place.copy_(values * factor if values.is_floating_point() else values)
        inputs = {name: entrants[name].prepare(memory) for name in names}
        order.shuffle(names)
        measured = {}
        for name in names:
            if mixed:
                time.sleep(PAUSE)
                entrants[name].run(other_inputs[name])
            clock.flush()
            result, marks = entrants[name].run(inputs[name], clock.now)
            measured[name] = clock.intervals(marks), _snapshot(entrants[name], result) if spotted else None
            del result
        return measured

    answers: dict[str, list[Tensor]] = {}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(warm_up):
            block()
        begin, index, moment = clock.elapsed(), 0, order.uniform(0, seconds)
        while index < FEWEST_BLOCKS or not answers or clock.elapsed() - begin < seconds:
            spotted = not answers and clock.elapsed() - begin >= moment
            measured = block(spotted)
            for turn, (name, (intervals, answer)) in enumerate(measured.items()):
                times[name].append(intervals)
                turns[name].append(turn)
                if spotted and entrants[name].judged:
                    answers[name] = answer
            index += 1
    finally:
        if collecting:
            gc.enable()
    return Race({n: np.array(t) for n, t in times.items()}, {n: np.array(t) for n, t in turns.items()}), answers


def _is_ready(competitor: Competitor, result: Any, seconds: float) -> bool:
    start = time.perf_counter()
    competitor.answer(result)
    return time.perf_counter() - start <= max(READY[0], READY[1] * seconds)


def _check_ready(name: str, competitor: Competitor, x: Any) -> None:
    """Raise WrongAnswer if work is left for after the clock: if `answer` takes long every time."""
    for _ in range(TRIES):
        result, marks = competitor.run(x)
        if _is_ready(competitor, result, marks[-1] - marks[0]):
            return
    raise WrongAnswer(f"{name} has no answer when its clock stops, {TRIES} times in a row; it is not timed")


def _snapshot(competitor: Competitor, result: Any) -> list[Tensor]:
    """The answer as it is now."""
    return [t.detach().clone() for t in competitor.answer(result)]


def _error(answer: Tensor, truth: Tensor) -> float:
    difference = (answer.double() - truth).abs().max()
    return float(difference / truth.abs().max().clamp_min(torch.finfo(truth.dtype).tiny))
