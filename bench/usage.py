"""Who used the processors meanwhile: ratios of codes that thread differently depend on how quiet the machine is."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STATISTICS = Path("/proc/stat")
IDLE = slice(3, 5)  # of a processor's line: idle, and waiting for a disk
GUEST = 8  # from here on, what the fields before count already


@dataclass(frozen=True)
class Usage:
    """Seconds since some moment: of the clock, of this process, and that its processors were busy, for whomever."""

    clock: float
    own: float
    busy: float
    processors: int

    @staticmethod
    def now() -> Usage | None:
        """As of now; None where the system does not tell (it is no Linux)."""
        if not STATISTICS.exists():
            return None
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in STATISTICS.read_text().splitlines()]
        ticks = [list(map(int, fields[1 : 1 + GUEST])) for fields in lines if fields[0] in mine]
        busy = sum(sum(of_one) - sum(of_one[IDLE]) for of_one in ticks) / os.sysconf("SC_CLK_TCK")
        return Usage(time.perf_counter(), time.process_time(), busy, len(mine))

    def others_until(self, later: Usage | None) -> float | None:
        """The share of these processors' time that others took from now until then, 0 to 1."""
        if later is None or later.clock <= self.clock:
            return None
        taken = (later.busy - self.busy) - (later.own - self.own)
        return min(max(taken / ((later.clock - self.clock) * self.processors), 0.0), 1.0)
