"""Recorded competitors: what they are stays as it was. A stand-in for CUDA runs the step at each replay."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch

from bench import graphs
from bench.cases import parse
from bench.peers import joined
from bench.protocol import OURS


def test_a_recorded_yardstick_is_not_judged_and_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = MagicMock(stream=lambda _: nullcontext(), graph=lambda _: nullcontext())
    monkeypatch.setattr(torch, "cuda", cuda)
    case = parse("recurrent-GRU-train-T5-B3-I6-H8")
    problem, _ = joined(case, case.problem(), ["products"])
    recorded = graphs.replayed(problem).competitors
    assert (recorded[OURS].judged, recorded["products"].judged) == (True, False)
    assert recorded[OURS].backward is None
    assert recorded[OURS].answer is problem.competitors[OURS].answer
