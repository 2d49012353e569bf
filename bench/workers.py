"""Fresh interpreters that measure: blocks of one process share its memory layout, so that each case has several."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from types import TracebackType

import torch

from bench import peers
from bench.cases import Case
from bench.clocks import Clock, EventClock, SynchronisedClock, WallClock
from bench.graphs import replayed
from bench.limits import Limits
from bench.memory import held_bytes
from bench.protocol import NATIVE, OURS, Race, WrongAnswer, measure
from bench.usage import Usage


@dataclass(frozen=True)
class Conditions:
    """What is equal for all competitors. `peers` are asked for beside torch.nn."""

    threads: int
    device: str = "cpu"
    tf32: bool = False
    peers: tuple[str, ...] = ()


@dataclass
class Measurement:
    """One case in one process: a race by each clock ("wall"; on CUDA "events" and "graph" too), the machine's limits
    before and after, which peers had to be left out, and why; what ours and torch.nn hold for the backward pass, told
    by the first process alone; and the share of the case's processors that others took meanwhile, None if unknown."""

    races: dict[str, Race]
    limits: Limits | None
    left_out: dict[str, str] = field(default_factory=dict)
    held_bytes: dict[str, int] = field(default_factory=dict)
    others: float | None = None


class Workers:
    """Processes, each with an interpreter of its own, that wait while another measures."""

    def __init__(self, processes: int) -> None:
        self._pools = [_pool() for _ in range(processes)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for pool in self._pools:
            pool.shutdown()

    def measure(self, number: int, case: Case, seconds: float, conditions: Conditions) -> Measurement:
        """The case in the process of that number, 0 being the first, for so many seconds.

        Raises what was raised in the process, and BrokenProcessPool if it died; a new one takes its place.
        """
        try:
            return self._pools[number].submit(measure_here, case, seconds, number, conditions, number > 0).result()
        except BrokenProcessPool:
            self._pools[number] = _pool()
            raise


def measure_here(case: Case, seconds: float, seed: int, conditions: Conditions, checked: bool) -> Measurement:
    """The case in this process. The process is one of its own: it keeps the conditions."""
    _keep(conditions)
    used = Usage.now()
    problem, left_out = peers.joined(case, case.problem(seed, conditions.device), conditions.peers)
    before = Limits.probe(case.bytes, conditions.device)
    races = {}
    for name, clock in _clocks(conditions.device).items():
        try:
            entered = replayed(problem) if name == "graph" else problem
        except RuntimeError as error:
            left_out["graph"] = str(error)
        else:
            races[name] = measure(entered, seconds, seed, clock, checked)
    if torch.get_num_threads() != conditions.threads:
        raise WrongAnswer(f"a competitor has set {torch.get_num_threads()} threads in place of {conditions.threads}")
    after = Limits.probe(case.bytes, conditions.device)
    others = used.others_until(Usage.now()) if used else None
    has_backward = next(iter(races.values())).seconds[OURS].shape[1] == 2  # a graph is replayed in one
    sides = (OURS, NATIVE) if has_backward and not checked else ()
    held = {name: held_bytes(problem.competitors[name], problem.samples[0]) for name in sides}
    return Measurement(races, Limits.highest([probe for probe in (before, after) if probe]), left_out, held, others)


def _clocks(device: str) -> dict[str, Clock]:
    if device == "cpu":
        return {"wall": WallClock()}
    return {"events": EventClock(), "wall": SynchronisedClock(), "graph": EventClock()}


def _keep(conditions: Conditions) -> None:
    """As many threads, and no more processors, for everyone: some peers start threads of their own."""
    torch.set_num_threads(conditions.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(PROCESSORS)[: max(conditions.threads, 1)])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = conditions.tf32


PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
