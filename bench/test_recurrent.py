"""Recurrent networks against torch.nn: `pytest --benchmark -k recurrent`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.cases import RECURRENT, Case


@pytest.mark.parametrize("case", RECURRENT, ids=lambda case: f"{case.group}-{case.shape}")
def test_recurrent(case: Case, measure: Callable[[Case], None]) -> None:
    measure(case)
