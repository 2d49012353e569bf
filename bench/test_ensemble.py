"""Ensembles of recurrent networks against torch.nn: `pytest --benchmark -k ensemble`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.cases import ENSEMBLES, Case


@pytest.mark.parametrize("case", ENSEMBLES, ids=lambda case: f"{case.group}-{case.shape}")
def test_ensemble(case: Case, measure: Callable[[Case], None]) -> None:
    measure(case)
