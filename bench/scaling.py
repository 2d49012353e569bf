"""How time grows with one size while the others stay: sweeps found among a result's rows, with fitted slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bench.cases import Case, Ensemble, Recurrent, parse
from bench.protocol import NATIVE, OURS
from bench.results import Row

AXES = {
    "steps": "steps T",
    "batch": "batch B",
    "hidden_size": "hidden units H",
    "models": "models E",
    "threads": "threads",
}
Unit = Literal["ms", "MB"]
FEWEST = 4  # sizes that make a sweep
THREADS_FEWEST = 2


@dataclass(frozen=True)
class Law:
    """Milliseconds or megabytes at `sizes` of one axis, and the exponent of the power law through them."""

    axis: str
    unit: Unit
    name: str
    what: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def slope(self) -> float:
        """By least squares on logarithms; 1 is proportional."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.values), 1)[0])

    @property
    def label(self) -> str:
        return f"{self.what}, {self.name}: {self.slope:.2f}"


def laws(rows: Sequence[Row]) -> list[Law]:
    """Sweeps along each axis: cases of one group that differ in nothing else, at four sizes or more."""
    found = []
    for axis in AXES:
        sweeps: dict[object, dict[int, Row]] = {}
        for row in rows:
            case = None if row.group.endswith("runs") else parse(row.case)
            if axis == "threads":
                sweeps.setdefault((row.case, row.clock), {})[row.threads] = row
            elif isinstance(case, Recurrent | Ensemble) and hasattr(case, axis):
                sweeps.setdefault((_rest(case, axis), row.threads, row.clock), {})[getattr(case, axis)] = row
        for sweep in sweeps.values():
            if len(sweep) >= (THREADS_FEWEST if axis == "threads" else FEWEST):
                found += _both(axis, sweep)
    return found


def _rest(case: Case, axis: str) -> Case:
    return replace(case, **{axis: 1})  # type: ignore[type-var]


def _both(axis: str, sweep: dict[int, Row]) -> list[Law]:
    """Ours and torch.nn's, in time and, where something is held for a backward pass, in memory."""
    sizes = tuple(sorted(sweep))
    rows = [sweep[size] for size in sizes]
    what = rows[0].group.split("-", 1)[1]
    values: dict[tuple[str, Unit], list[float | None]] = {
        (OURS, "ms"): [row.milliseconds for row in rows],
        (NATIVE, "ms"): [row.other_milliseconds for row in rows],
        (OURS, "MB"): [row.held_megabytes for row in rows],
        (NATIVE, "MB"): [row.other_held_megabytes for row in rows],
    }
    return [
        Law(axis, unit, name, what, sizes, tuple(known))
        for (name, unit), numbers in values.items()
        if len(known := [number for number in numbers if number is not None]) == len(sizes)
    ]
