"""The table that `pytest --benchmark` prints: one row per case, losses shown like wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.protocol import Verdict

WIDTH = 160  # more than any row takes, so that nothing is cut
STYLES: dict[Verdict, str] = {"faster": "green", "slower": "red", "same": "dim"}


@dataclass(frozen=True)
class Row:
    """One case's result; ratios are torch.nn's time over ours."""

    group: str
    shape: str
    ratio: float
    low: float
    high: float
    won: float
    band: float
    verdict: Verdict
    milliseconds: float
    gflops_per_second: float
    sgemm_share: float
    blocks: int
    threads: int


def geometric_mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def render(rows: Sequence[Row], title: str, color: bool) -> str:
    """The table of `rows` as text for a terminal, grouped, each group closed by its geometric mean."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("case", no_wrap=True)
    for heading in ("torch.nn/ours", "95 % interval", "A/A", "won", "verdict", "ms ours", "GFLOP/s", "of sgemm"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, members in groupby(sorted(rows, key=lambda row: row.group), key=lambda row: row.group):
        _add_group(table, group, list(members))
    console = Console(width=WIDTH, force_terminal=color, no_color=not color)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _add_group(table: Table, group: str, rows: Sequence[Row]) -> None:
    table.add_row(Text(group, style="bold"))
    for row in rows:
        table.add_row(
            f"  {row.shape}",
            f"{row.ratio:.2f}",
            f"{row.low:.2f} - {row.high:.2f}",
            f"±{row.band - 1:.1%}",
            f"{row.won:.0%}",
            Text(row.verdict, style=STYLES[row.verdict]),
            f"{row.milliseconds:.3g}",
            f"{row.gflops_per_second:.3g}",
            f"{row.sgemm_share:.0%}",
        )
    table.add_row("  geometric mean", Text(f"{geometric_mean([row.ratio for row in rows]):.2f}", style="bold"))
    table.add_section()
