"""The table that `pytest --benchmark` prints: one row per case, losses shown like wins, in 100 columns if they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.protocol import NATIVE
from bench.ratios import Verdict, geometric_mean
from bench.results import Row, others_share
from bench.workers import Measurement

WIDTH = 100
STYLES: dict[Verdict, str] = {"faster": "green", "slower": "red", "same": "dim"}
HEADINGS = ("ratio", "95 % interval", "fwd", "bwd", "A/A", "won", "verdict", "ms ours", "limit")
LEGEND = (
    "ratio: torch.nn's time / ours, or that of the other named. fwd, bwd: forward and backward alone.",
    "A/A: how far ours differs from itself. limit: share of what arithmetic (a) or memory (m) allows.",
)
SLOW_START = 1.0  # seconds of a first call that are worth a remark
QUIET = 0.05  # of the processors' time, that others may take


def render(rows: Sequence[Row], title: str, color: bool) -> str:
    """The table of `rows` as text for a terminal, grouped, each group closed by its geometric mean."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("case", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for group, members in groupby(sorted(rows, key=lambda row: row.group), key=lambda row: row.group):
        _add_group(table, group, list(members))
    console = Console(width=WIDTH, force_terminal=color, no_color=not color)
    console.width = max(WIDTH, console.measure(table, options=console.options.update(width=2 * WIDTH)).maximum)
    with console.capture() as capture:
        console.print(title, highlight=False)
        console.print(table)
        for line in LEGEND:
            console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def remarks(measured: Mapping[str, Sequence[Measurement]]) -> Iterator[str]:
    """Who took long to start, who was left out and why, and how little the machine was quiet: each once."""
    starts: dict[str, tuple[float, str]] = {}
    left_out: dict[tuple[str, str], int] = {}
    for case, measurements in measured.items():
        for measurement in measurements:
            for race in measurement.races.values():
                for name, seconds in race.first_seconds.items():
                    starts[name] = max(starts.get(name, (0.0, "")), (seconds, case), key=itemgetter(0))
        for reason in measurements[0].left_out.items():
            left_out[reason] = left_out.get(reason, 0) + 1
    for name, (seconds, case) in starts.items():
        if seconds > SLOW_START:
            yield f"apart from these times: {name} took up to {seconds:.1f} s for its first call ({case})"
    shares = {case: others_share(measurements) or 0.0 for case, measurements in measured.items()}
    disturbed = {case: share for case, share in shares.items() if share > QUIET}
    if disturbed:
        worst = max(disturbed, key=disturbed.__getitem__)
        yield (
            f"not quiet: in {len(disturbed)} of {len(shares)} cases others took more than {QUIET:.0%} of the "
            f"processors, up to {disturbed[worst]:.0%} ({worst}). Who works on more threads loses more by that, in "
            "every process alike: such ratios hold for this moment, and no interval covers another."
        )
    for (name, why), count in left_out.items():
        yield f"left out: {name} in {count} case{'s' if count > 1 else ''}: {why}"


def _add_group(table: Table, group: str, rows: Sequence[Row]) -> None:
    table.add_row(Text(group, style="bold"))
    first_clock = rows[0].clock
    for shape, of_shape in groupby(rows, key=lambda row: row.shape):
        label = f"  {shape}"
        for (clock, other), same in groupby(of_shape, key=lambda row: (row.clock, row.other)):
            if not label:
                words = [f"vs {other}" if other != NATIVE else "", clock if clock != first_clock else ""]
                label = "    " + " ".join(filter(None, words))
            _add_row(table, label, {row.part: row for row in same})
            label = ""
    main = [row.as_ratio() for row in rows if (row.part, row.other, row.clock) == ("step", NATIVE, first_clock)]
    mean, low, high = geometric_mean(main)
    table.add_row("  geometric mean", Text(f"{mean:.2f}", style="bold"), f"{low:.2f} - {high:.2f}")
    table.add_section()


def _add_row(table: Table, label: str, parts: Mapping[str, Row]) -> None:
    row = parts["step"]
    table.add_row(
        label,
        _ratio(row.ratio),
        f"{_ratio(row.low)} - {_ratio(row.high)}",
        *(_ratio(parts[part].ratio) if part in parts else "" for part in ("forward", "backward")),
        f"±{row.band - 1:.{1 if row.band < 1.0995 else 0}%}",
        f"{row.won:.0%}",
        Text(row.verdict, style=STYLES[row.verdict]),
        f"{row.milliseconds:.3g}" if row.milliseconds < 999.5 else f"{row.milliseconds:.0f}",
        f"{row.limit_share:.0%}{str(row.bound)[0]}" if row.limit_share is not None else "",
    )


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 99.95 else f"{ratio:.0f}"
