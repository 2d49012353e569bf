"""Convolution blocks against torch.nn: `pytest --benchmark -k conv`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.cases import CONVOLUTIONS, Case


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case.group}-{case.shape}")
def test_conv(case: Case, measure: Callable[[Case], None]) -> None:
    measure(case)
