"""Every case against torch.nn, and against peers that are asked for: `pytest --benchmark`, fewer with `-k`.

One process measures all cases before the next one does, so that the processes of a case lie minutes apart.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.cases import Case, name_of, parse
from bench.declared import cases
from bench.runs import Runs

RUNS = [Runs("epidemic", 32), Runs("vision", 8), Runs("vision", 1, whole=True)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    chosen: list[Case] = list(dict.fromkeys(parse(name) for name in option("--benchmark-case")))
    if not chosen:
        device = option("--benchmark-device")
        chosen = [*cases(option("--benchmark-full"), device), *(RUNS if device == "cpu" else [])]
    processes = range(option("--benchmark-processes"))
    rounds = [
        pytest.param(case, number, id=f"{name_of(case)}-process{number}") for number in processes for case in chosen
    ]
    metafunc.parametrize(("case", "process"), rounds)


def test_case(case: Case, process: int, measure: Callable[[Case, int], None]) -> None:
    measure(case, process)
