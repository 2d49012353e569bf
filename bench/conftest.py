"""Has cases measured by one fresh process after the other, hands times to pytest-benchmark, and prints the table."""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import machine, peers, table
from bench.cases import Case, name_of
from bench.protocol import OURS
from bench.ratios import FEWEST_PROCESSES
from bench.results import Results, Row, extra_info, others_share, rows_of, write_pairs
from bench.workers import Conditions, Measurement, Workers


@dataclass
class Session:
    """What was measured: each case with a measurement from every process that had its turn; and what failed."""

    measured: dict[Case, list[Measurement]] = field(default_factory=dict)
    failed: set[Case] = field(default_factory=set)
    rows: dict[Case, list[Row]] = field(default_factory=dict)

    @property
    def complete(self) -> dict[Case, list[Measurement]]:
        """The cases that did not fail, with the rounds that all of them have had: less than all if interrupted."""
        sound = {case: found for case, found in self.measured.items() if case not in self.failed}
        rounds = min(map(len, sound.values()), default=0)
        return {case: found[:rounds] for case, found in sound.items()}


SESSION = pytest.StashKey[Session]()
_stamps: deque[float] = deque()


def measured_seconds() -> float:
    """The timer given to pytest-benchmark: it reads out what the protocol has measured."""
    return _stamps.popleft()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.benchmark(timer=measured_seconds))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node")  # the name of a host says nothing to others
    machine_info["recurve"] = _about(config)


@pytest.fixture(scope="session")
def workers(pytestconfig: pytest.Config) -> Iterator[Workers]:
    with Workers(pytestconfig.getoption("--benchmark-processes")) as processes:
        yield processes


@pytest.fixture
def measure(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, workers: Workers
) -> Callable[[Case, int], None]:
    """Measure one case in one process; after the last process, hand its rows to pytest-benchmark."""

    def run(case: Case, process: int) -> None:
        conditions, session = _conditions(pytestconfig), pytestconfig.stash.setdefault(SESSION, Session())
        processes = pytestconfig.getoption("--benchmark-processes")
        measurements = session.measured.setdefault(case, [])
        if len(measurements) < process:
            pytest.skip(f"{name_of(case)} has no measurement of an earlier process")
        try:
            seconds = pytestconfig.getoption("--benchmark-seconds") / processes
            measurements.append(workers.measure(process, case, seconds, conditions))
            if process + 1 < processes:
                return
            rows = session.rows[case] = rows_of(case, measurements, conditions)
        except Exception:
            session.failed.add(case)
            raise
        benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")
        benchmark.group, benchmark.name = case.group, f"test_case[{name_of(case)}]"
        benchmark.extra_info.update(extra_info(rows, measurements))
        _record(benchmark, measurements)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash.get(SESSION, Session())
    measured = {name_of(case): found for case, found in session.complete.items()}
    rounds, processes = min(map(len, measured.values()), default=0), config.getoption("--benchmark-processes")
    if rounds < FEWEST_PROCESSES:
        return
    for case, found in session.complete.items():
        if rounds < processes:
            session.rows[case] = rows_of(case, found, _conditions(config))
    rows = [row for case in session.complete for row in session.rows[case]]
    results = Results(rows, {**_about(config), "date": f"{datetime.date.today()}"})
    if rounds < processes:
        terminalreporter.write_line(f"interrupted: from {rounds} of {processes} processes")
    terminalreporter.write_sep("=", "benchmarks: above 1, ours is faster")
    terminalreporter.write(table.render(rows, results.title, terminalreporter.hasmarkup))
    for line in table.remarks(measured):
        terminalreporter.write_line(line)
    path = config.getoption("--benchmark-csv")
    if path is not None:
        write_pairs(path, measured)
        terminalreporter.write_line(f"every block: {path}")


def _about(config: pytest.Config) -> dict[str, str]:
    measured = config.stash.get(SESSION, Session()).complete
    share = others_share(measurement for of_case in measured.values() for measurement in of_case)
    others = {} if share is None else {"others": f"{share:.0%}"}
    return {**machine.about(_conditions(config)), **others}


def _conditions(config: pytest.Config) -> Conditions:
    wanted = config.getoption("--benchmark-peers")
    return Conditions(
        threads=config.getoption("--benchmark-threads") or torch.get_num_threads(),
        device=config.getoption("--benchmark-device"),
        tf32=config.getoption("--benchmark-tf32"),
        peers=tuple(peers.PEERS) if wanted == "all" else tuple(filter(None, wanted.split(","))),
    )


def _record(benchmark: BenchmarkFixture, measurements: Sequence[Measurement]) -> None:
    """Give pytest-benchmark one round per block; its timer is read before and after each."""
    races = [next(iter(measurement.races.values())) for measurement in measurements]
    times = [float(seconds) for race in races for seconds in race.part(OURS, "step")]
    _stamps.clear()
    for seconds in times:
        _stamps.extend((0.0, seconds))
    benchmark.pedantic(lambda: None, rounds=len(times))
