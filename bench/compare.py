"""Two result files side by side: did ours become faster or slower, with torch.nn in the same blocks as yardstick."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from bench.protocol import NATIVE
from bench.ratios import CONFIDENCE, Verdict, verdict
from bench.results import ResultError, Results, Row
from bench.table import STYLES, WIDTH


@dataclass(frozen=True)
class Change:
    """How many times faster B's ours is than A's, both measured in units of torch.nn's time; 1 is no change.

    The interval is Welch's, of two independent groups of processes. `band` is the wider of both A/A bands.
    """

    group: str
    shape: str
    ratio: float
    low: float
    high: float
    band: float
    milliseconds: tuple[float, float]

    @property
    def verdict(self) -> Verdict:
        return verdict(self.low, self.high, self.band)


def changes(a: Results, b: Results) -> list[Change]:
    """Of every case that both files hold: whole steps against torch.nn.

    Raises:
        ResultError: they have no case in common.
    """
    before, after = _main_rows(a), _main_rows(b)
    found = [_change(row, after[key]) for key, row in before.items() if key in after]
    if not found:
        where = [f"{results.about['threads']} threads of {results.about['machine']}" for results in (a, b)]
        unlike = f": A is of {where[0]}, B of {where[1]}" if where[0] != where[1] else ""
        raise ResultError(f"the two files have no case in common{unlike}")
    return found


def geometric_mean(found: Sequence[Change], a: Results, b: Results) -> tuple[float, float, float]:
    """Over all common cases, with its interval."""
    names = {(change.group, change.shape) for change in found}
    means = []
    for results in (a, b):
        logs = [row.logs for key, row in _main_rows(results).items() if (row.group, row.shape) in names]
        means.append(np.mean(logs, axis=0))
    return _welch(*means)


def failures(found: Sequence[Change], least: float) -> list[Change]:
    """The cases that became slower, and by more than allowed."""
    return [change for change in found if change.ratio < least and change.verdict == "slower"]


def missing(a: Results, b: Results) -> list[str]:
    """The cases of A that B does not hold."""
    others = _main_rows(b)
    return [row.case for key, row in _main_rows(a).items() if key not in others]


def differences(a: Results, b: Results) -> Iterator[str]:
    """What else is not the same: cases of only one file, and fields of machine and versions."""
    for name, only in (("A", missing(a, b)), ("B", missing(b, a))):
        if only:
            yield f"only in {name}: {', '.join(only)}"
    for field in sorted(a.about.keys() | b.about.keys()):
        values = a.about.get(field, "unknown"), b.about.get(field, "unknown")
        if values[0] != values[1] and field != "date":
            yield f"{field}: {values[0]} in A, {values[1]} in B"


def render(found: Sequence[Change], mean: tuple[float, float, float], color: bool) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("case", no_wrap=True)
    for heading in ("B / A", "95 % interval", "A/A", "verdict", "ms A", "ms B"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, members in groupby(sorted(found, key=lambda change: change.group), key=lambda change: change.group):
        table.add_row(Text(group, style="bold"))
        for change in members:
            table.add_row(
                f"  {change.shape}",
                f"{change.ratio:.2f}",
                f"{change.low:.2f} - {change.high:.2f}",
                f"±{change.band - 1:.1%}",
                Text(change.verdict, style=STYLES[change.verdict]),
                *(f"{milliseconds:.3g}" for milliseconds in change.milliseconds),
            )
    table.add_row(Text("geometric mean", style="bold"), f"{mean[0]:.2f}", f"{mean[1]:.2f} - {mean[2]:.2f}")
    console = Console(width=WIDTH, force_terminal=color, no_color=not color)
    with console.capture() as capture:
        console.print(table)
        console.print("above 1: B is faster, measured by torch.nn in the same blocks", highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _main_rows(results: Results) -> dict[tuple[str, str, int, str], Row]:
    return {
        (row.case, row.clock, row.threads, row.device): row
        for row in results.rows
        if row.part == "step" and row.other == NATIVE
    }


def _change(a: Row, b: Row) -> Change:
    interval = _welch(a.logs, b.logs)
    return Change(a.group, a.shape, *interval, max(a.band, b.band), (a.milliseconds, b.milliseconds))


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the geometric means, b over a, with its 95 % interval, from the processes' logarithms."""
    difference = float(np.mean(b) - np.mean(a))
    errors = [float(np.var(logs, ddof=1)) / len(logs) for logs in (a, b)]
    if sum(errors) == 0:
        return (math.exp(difference),) * 3
    freedom = sum(errors) ** 2 / sum(e**2 / (len(logs) - 1) for e, logs in zip(errors, (a, b), strict=True))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(sum(errors))
    return math.exp(difference), math.exp(difference - half), math.exp(difference + half)
