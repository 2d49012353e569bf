"""How time grows with one size while the others stay: sweeps found among a result's rows, with fitted slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bench.cases import Ensemble, Recurrent, parse
from bench.results import Row

SIZES = {
    "steps": "steps T",
    "batch": "batch B",
    "hidden_size": "hidden units H",
    "models": "models E",
}
Unit = Literal["ms", "MB"]
MEMORY_AXES = ("steps", "models")
FEWEST = 4  # sizes that make a sweep; of threads, two do


@dataclass(frozen=True)
class Law:
    """Milliseconds or megabytes at `sizes` of one axis, ours and torch.nn's, and the exponents of their power laws.

    `fixed` names the sizes that stay, such as `T30-B32-I3`; of threads it is empty.
    """

    axis: str
    unit: Unit
    group: str
    sizes: tuple[int, ...]
    ours: tuple[float, ...]
    native: tuple[float, ...]
    fixed: str = ""

    @property
    def slope(self) -> float:
        """Of ours, by least squares on logarithms; 1 is proportional."""
        return _slope(self.sizes, self.ours)

    @property
    def native_slope(self) -> float:
        return _slope(self.sizes, self.native)


def laws(rows: Sequence[Row]) -> list[Law]:
    """Sweeps along each axis: cases of one group that differ in nothing else, at four sizes or more.

    They are those on most threads; the sweep of threads itself is over the geometric mean of a group's cases.
    """
    most = max((row.threads for row in rows), default=0)
    found = []
    for axis in SIZES:
        sweeps: dict[object, dict[int, Row]] = {}
        for row in rows:
            case = None if row.group.endswith("-runs") else parse(row.case)
            if row.threads == most and isinstance(case, Recurrent | Ensemble) and hasattr(case, axis):
                others: dict[str, Any] = {axis: 1}
                sweeps.setdefault(replace(case, **others), {})[getattr(case, axis)] = row
        for sweep in sweeps.values():
            if len(sweep) >= FEWEST:
                found += _of_sweep(axis, sweep)
    return found + _of_threads(rows)


def _of_sweep(axis: str, sweep: dict[int, Row]) -> list[Law]:
    """In time and, where something is held for a backward pass, in memory."""
    sizes = tuple(sorted(sweep))
    rows = [sweep[size] for size in sizes]
    group = rows[0].group
    ours, native = tuple(row.milliseconds for row in rows), tuple(row.other_milliseconds for row in rows)
    letter = SIZES[axis][-1]
    fixed = "-".join(part for part in rows[0].shape.split("-") if not part.startswith(letter))
    found = [Law(axis, "ms", group, sizes, ours, native, fixed)]
    held = [(row.held_megabytes, row.other_held_megabytes) for row in rows]
    known = [(own, other) for own, other in held if own is not None and other is not None]
    if axis in MEMORY_AXES and len(known) == len(rows):
        ours, native = zip(*known, strict=True)
        found.append(Law(axis, "MB", group, sizes, ours, native, fixed))
    return found


def _of_threads(rows: Sequence[Row]) -> list[Law]:
    groups: dict[str, dict[int, dict[str, Row]]] = {}
    for row in rows:
        groups.setdefault(row.group, {}).setdefault(row.threads, {})[row.case] = row
    found = []
    for group, by_threads in groups.items():
        sizes = tuple(sorted(by_threads))
        common = set.intersection(*(set(cases) for cases in by_threads.values()))
        if len(sizes) > 1 and common:
            members = [[by_threads[size][case] for case in sorted(common)] for size in sizes]
            ours = tuple(_mean([row.milliseconds for row in cases]) for cases in members)
            native = tuple(_mean([row.other_milliseconds for row in cases]) for cases in members)
            found.append(Law("threads", "ms", group, sizes, ours, native))
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
