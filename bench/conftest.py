"""Runs a case by the paired protocol, hands the times to pytest-benchmark, and prints the table at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import recurve
from bench import protocol, table
from bench.cases import Case

ROWS = pytest.StashKey[list[table.Row]]()
_stamps: deque[float] = deque()


def measured_seconds() -> float:
    """The timer given to pytest-benchmark: it reads out what the protocol has measured."""
    return _stamps.popleft()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.benchmark(timer=measured_seconds))


@pytest.fixture(scope="session", autouse=True)
def threads(pytestconfig: pytest.Config) -> Iterator[int]:
    """Threads that every competitor may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(pytestconfig.getoption("--benchmark-threads") or before)
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.fixture
def measure(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, threads: int) -> Callable[[Case], None]:
    """Measure one case and keep its row."""

    def run(case: Case) -> None:
        before = protocol.sgemm_rate()
        comparison = protocol.compare(case.problem(), pytestconfig.getoption("--benchmark-seconds"))
        row = _row(case, comparison, max(before, protocol.sgemm_rate()), threads)
        pytestconfig.stash.setdefault(ROWS, []).append(row)
        benchmark.group = case.group
        benchmark.extra_info.update(asdict(row))
        _record(benchmark, comparison.seconds.tolist())

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if rows:
        threads = f"{rows[0].threads} thread{'s' if rows[0].threads > 1 else ''}"
        title = f"recurve {recurve.__version__}, torch {torch.__version__}, float32, {threads}"
        terminalreporter.write_sep("=", "benchmarks: above 1, ours is faster")
        terminalreporter.write(table.render(rows, title, terminalreporter.hasmarkup))


def _row(case: Case, comparison: protocol.Comparison, sgemm: float, threads: int) -> table.Row:
    seconds = float(np.median(comparison.seconds))
    return table.Row(
        group=case.group,
        shape=case.shape,
        ratio=comparison.ratio.median,
        low=comparison.ratio.low,
        high=comparison.ratio.high,
        won=comparison.ratio.won,
        band=comparison.band,
        verdict=comparison.verdict,
        milliseconds=1e3 * seconds,
        gflops_per_second=1e-9 * case.flops / seconds,
        sgemm_share=case.flops / seconds / sgemm,
        blocks=len(comparison.seconds),
        threads=threads,
    )


def _record(benchmark: BenchmarkFixture, times: list[float]) -> None:
    """Give pytest-benchmark one round per block; its timer is read before and after each."""
    _stamps.clear()
    for seconds in times:
        _stamps.extend((0.0, seconds))
    benchmark.pedantic(lambda: None, rounds=len(times))
