"""How quiet the machine was: what others took is what was busy beyond one's own."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from bench.usage import Usage


def test_others_took_what_was_busy_beyond_ones_own() -> None:
    start = Usage(clock=10.0, own=1.0, busy=5.0, processors=2)
    assert start.others_until(Usage(12.0, 2.0, 7.0, 2)) == pytest.approx(1 / 4)
    assert start.others_until(Usage(12.0, 3.0, 6.9, 2)) == 0.0  # ticks are coarse
    assert start.others_until(None) is None


def test_a_process_beside_this_one_is_seen() -> None:
    if Usage.now() is None:
        pytest.skip("the system does not tell who uses its processors")
    start = Usage.now()
    beside = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.5)
    beside.kill()
    beside.wait()
    assert start is not None
    assert (start.others_until(Usage.now()) or 0.0) > 0.2 / start.processors
