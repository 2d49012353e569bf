"""Has cases measured in fresh processes, hands the times to pytest-benchmark, and prints the table at the end."""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import machine, peers, table
from bench.cases import Case, name_of
from bench.protocol import OURS
from bench.results import Results, Row, extra_info, rows_of, write_pairs
from bench.workers import Conditions, Measurement, Workers

ROWS = pytest.StashKey[list[Row]]()
MEASURED = pytest.StashKey[dict[str, list[Measurement]]]()
_stamps: deque[float] = deque()


def measured_seconds() -> float:
    """The timer given to pytest-benchmark: it reads out what the protocol has measured."""
    return _stamps.popleft()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.benchmark(timer=measured_seconds))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node")  # the name of a host says nothing to others
    machine_info["recurve"] = machine.about(_conditions(config))


@pytest.fixture(scope="session")
def workers(pytestconfig: pytest.Config) -> Iterator[Workers]:
    with Workers(pytestconfig.getoption("--benchmark-processes")) as processes:
        yield processes


@pytest.fixture
def measure(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, workers: Workers) -> Callable[[Case], None]:
    """Measure one case and keep its rows."""

    def run(case: Case) -> None:
        conditions = _conditions(pytestconfig)
        measurements = workers.measure(case, pytestconfig.getoption("--benchmark-seconds"), conditions)
        rows = rows_of(case, measurements, conditions)
        pytestconfig.stash.setdefault(ROWS, []).extend(rows)
        pytestconfig.stash.setdefault(MEASURED, {})[name_of(case)] = measurements
        benchmark.group = case.group
        benchmark.extra_info.update(extra_info(rows, measurements))
        _record(benchmark, measurements)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows, measured = config.stash.get(ROWS, []), config.stash.get(MEASURED, {})
    if not rows:
        return
    results = Results(rows, {**machine.about(_conditions(config)), "date": f"{datetime.date.today()}"})
    terminalreporter.write_sep("=", "benchmarks: above 1, ours is faster")
    terminalreporter.write(table.render(rows, results.title, terminalreporter.hasmarkup))
    for line in table.remarks(measured):
        terminalreporter.write_line(line)
    path = config.getoption("--benchmark-csv")
    if path is not None:
        write_pairs(path, measured)
        terminalreporter.write_line(f"every block: {path}")


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
