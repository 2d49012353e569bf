"""Adds `pytest --benchmark`, which runs what is under bench/; without it, pytest runs tests and times nothing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"  # pytest's rootdir follows the files that options name


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _at_least_two(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 2; one has no interval")
    return int(text)


def _case(text: str) -> str:
    from bench.cases import parse

    try:
        parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _peers(text: str) -> str:
    from bench.peers import PEERS

    unknown = [name for name in text.split(",") if name not in ("", "all", *PEERS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)!r} is unknown; allowed: all, {', '.join(PEERS)}")
    return text


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
        default=0.4,
        metavar="SECONDS",
        help="With --benchmark: time spent measuring each case, over all processes. Default: %(default)s.",
    )
    group.addoption(
        "--benchmark-processes",
        type=_at_least_two,
        default=4,
        metavar="N",
        help="With --benchmark: fresh processes for each case, by which intervals are clustered. Default: %(default)s.",
    )
    group.addoption(
        "--benchmark-full",
        action="store_true",
        help="With --benchmark: all cases and not just the main table's: studies, DeepBench, ensembles of 1 to 256.",
    )
    group.addoption(
        "--benchmark-case",
        type=_case,
        action="append",
        default=[],
        metavar="CASE",
        help="With --benchmark: only this case, declared or not, as recurrent-GRU-train-T30-B32-I3-H32. Repeatable.",
    )
    group.addoption(
        "--benchmark-peers",
        type=_peers,
        default="",
        metavar="NAMES",
        help="With --benchmark: others to race beside torch.nn, separated by commas, or `all`; see bench/README.md.",
    )
    group.addoption(
        "--benchmark-device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="With --benchmark: where everyone computes. Default: %(default)s.",
    )
    group.addoption("--benchmark-tf32", action="store_true", help="With --benchmark: let everyone use TF32 on CUDA.")
    group.addoption(
        "--benchmark-csv",
        type=Path,
        metavar="PATH",
        help="With --benchmark: write every block of every process, competitor and part there.",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        return
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--benchmark needs the machine to itself: leave out -n")
    if config.getoption("--benchmark-device") == "cuda":
        _demand_gpu()
    elif config.getoption("--benchmark-tf32"):
        raise pytest.UsageError("--benchmark-tf32 is for --benchmark-device cuda; processors have no TF32")
    for option in ("--benchmark-csv", "--benchmark-json"):
        _demand_writable(config, option)
    config.option.benchmark_quiet = True  # pytest-benchmark's own table compares times that were not paired
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(BENCH)]


def _demand_writable(config: pytest.Config, option: str) -> None:
    """Before anything is measured, not after."""
    path = config.getoption(option)
    if not isinstance(path, Path):
        return
    obstacle = None
    if path.is_dir():
        obstacle = "it is a folder"
    elif not path.parent.is_dir():
        obstacle = f"there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        obstacle = "the rights to write there are missing"
    if obstacle is not None:
        raise pytest.UsageError(f"{option} {path} cannot be written: {obstacle}; name another file")


def _demand_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--benchmark-device cuda: torch {torch.__version__} can use no GPU here; use cpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        benchmark = item.path.is_relative_to(BENCH)
        wanted[benchmark == config.getoption("--benchmark")].append(item)
    items[:] = wanted[True]
    if wanted[False]:
        config.hook.pytest_deselected(items=wanted[False])
