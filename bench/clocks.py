"""What stops the time: the processor's clock, CUDA events behind a cold cache, or the clock after a synchronisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

FLUSHED_BYTES = 256 << 20  # more than any second-level cache


class Clock(Protocol):
    """Marks moments inside a turn; `elapsed` tells the seconds that the whole race has taken."""

    def flush(self) -> None:
        """Before a turn: let it start from the same state as any other."""

    def now(self) -> Any:
        """A mark."""

    def intervals(self, marks: Sequence[Any]) -> NDArray[np.float64]:
        """Seconds between neighbouring marks."""

    def elapsed(self) -> float:
        """Seconds since some moment."""


class WallClock:
    """For processors: every call ends when its work does."""

    def __init__(self, seconds: Callable[[], float] = time.perf_counter) -> None:
        self.now = self.elapsed = seconds

    def flush(self) -> None:
        pass

    def intervals(self, marks: Sequence[float]) -> NDArray[np.float64]:
        return np.diff(marks)


class EventClock:
    """For CUDA: what the current stream takes, each turn with a cold second-level cache.

    The write that flushes the cache also keeps the device busy while the first kernels are launched.
    """

    def __init__(self) -> None:
        self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")
        self.elapsed = time.perf_counter

    def flush(self) -> None:
        torch.cuda.synchronize()
        self._flushed.zero_()

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def intervals(self, marks: Sequence[torch.cuda.Event]) -> NDArray[np.float64]:
        marks[-1].synchronize()
        return np.array([1e-3 * start.elapsed_time(end) for start, end in pairwise(marks)])


class SynchronisedClock(WallClock):
    """For CUDA: what a caller waits for, launches and all streams included."""

    def __init__(self) -> None:
        super().__init__(self._synchronised)

    @staticmethod
    def _synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()
