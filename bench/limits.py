"""The roofline: the machine's peak arithmetic and memory bandwidth, measured on the spot, and where a case lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bench.cases import Case
from recurve import _extension

PROBE_SECONDS = 0.004
LEAST_BYTES = 1 << 14  # of a probe; less lies in the same cache
MOST_BYTES = 1 << 26  # of a probe; beyond, memory is no faster
MOST_SHARE = 1.05  # of the limit that a measurement may reach; more is a mistake, not a speed


class ImpossibleSpeed(AssertionError):
    """A time below what the machine can do: the measurement is wrong, and gets no number."""


@dataclass(frozen=True)
class Limits:
    """float32 multiplications and additions per second, and bytes per second in memory of the case's size."""

    flops: float
    bandwidth: float

    @staticmethod
    def probe(size: int, device: str) -> Limits | None:
        """The limits as of now, on the threads that torch has; None where there is nothing to measure them with."""
        module = _extension.module()
        if device != "cpu" or module is None:
            return None
        size = min(max(size, LEAST_BYTES * torch.get_num_threads()), MOST_BYTES)
        return Limits(module.peak_flops(PROBE_SECONDS), module.peak_bandwidth(size, PROBE_SECONDS))

    @staticmethod
    def highest(probes: Sequence[Limits]) -> Limits | None:
        """The best that was seen: what else runs on the machine only takes away."""
        if not probes:
            return None
        return Limits(max(probe.flops for probe in probes), max(probe.bandwidth for probe in probes))

    def bound(self, case: Case) -> Literal["arithmetic", "memory"]:
        """What keeps the case from being faster."""
        return "arithmetic" if case.flops / self.flops >= case.bytes / self.bandwidth else "memory"

    def share(self, case: Case, seconds: float) -> float:
        """The least time that the case's direct arithmetic and its traffic take, over the time measured.

        Raises:
            ImpossibleSpeed: even the most frugal algorithm would have taken longer, by more than 5 %.
        """
        least = max(case.least_flops / self.flops, case.bytes / self.bandwidth)
        if least > MOST_SHARE * seconds:
            raise ImpossibleSpeed(
                f"{case.group}-{case.shape}: {seconds:.3g} s is {least / seconds:.0%} of what the machine can do "
                f"({self.flops:.3g} FLOP/s, {self.bandwidth:.3g} B/s); at most {MOST_SHARE:.0%} is believed"
            )
        return max(case.flops / self.flops, case.bytes / self.bandwidth) / seconds
