"""Adds `pytest --benchmark`, which runs what is under bench/; without it, pytest runs tests and times nothing."""

from __future__ import annotations

import argparse

import pytest


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark")
    group.addoption(
        "--benchmark", action="store_true", help="Run the benchmarks under bench/ (choose some with -k) and no tests."
    )
    group.addoption(
        "--benchmark-threads",
        type=_positive_int,
        metavar="N",
        help="With --benchmark: threads that every competitor may use. Default: as many as torch takes by itself.",
    )
    group.addoption(
        "--benchmark-seconds",
        type=_positive_seconds,
        default=1.5,
        metavar="SECONDS",
        help="With --benchmark: time spent measuring each case. Default: %(default)s.",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        return
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--benchmark needs the machine to itself: leave out -n")
    config.option.benchmark_quiet = True  # pytest-benchmark's own table compares times that were not paired
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(config.rootpath / "bench")]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        benchmark = item.path.is_relative_to(config.rootpath / "bench")
        wanted[benchmark == config.getoption("--benchmark")].append(item)
    items[:] = wanted[True]
    if wanted[False]:
        config.hook.pytest_deselected(items=wanted[False])
