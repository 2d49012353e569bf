"""Figures of a result, and a page with them: ratios, the roofline, scaling laws, and the map over batch and width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullLocator

from ablations.report.figures.theme import GRID, INK, MARKERS, MUTED, PALETTE, WIDTH, Drawing, themed
from ablations.report.html import inline
from ablations.report.numbers import count
from bench.cases import Recurrent, parse
from bench.protocol import NATIVE
from bench.ratios import Verdict
from bench.results import Results, Row
from bench.scaling import SIZES, Law, laws

COLOURS: dict[Verdict, tuple[str, str]] = {"faster": ("#009e73", "o"), "slower": ("#d55e00", "X"), "same": (MUTED, "s")}

MOST_IN_A_COLUMN = 40  # cases of a forest


@themed
def forest(rows: Sequence[Row]) -> Figure:
    """Every case's ratio with its interval, by group, on a logarithmic axis; bars beside 1 are A/A bands.

    Many cases stand in two columns.
    """
    names = dict.fromkeys(row.group for row in rows)
    groups = [[row for row in rows if row.group == name] for name in names]
    sides = _in_two(groups) if len(rows) > MOST_IN_A_COLUMN else [groups]
    longest = max(_lines(side) for side in sides)
    figure, grid = plt.subplots(1, len(sides), figsize=(WIDTH, 1 + 0.19 * longest), sharex=True, squeeze=False)
    for axes, side in zip(grid[0], sides, strict=True):
        _forest_column(axes, side, longest)
    grid[0, 0].set_xscale("log")
    _plain_ticks(grid[0, 0].xaxis, LogLocator(subs=(1, 2, 5)))
    figure.supxlabel("the other's time / ours (above 1: ours is faster)", fontsize=9.5)
    return figure


def _lines(groups: Sequence[Sequence[Row]]) -> float:
    """Of a column of the forest."""
    return sum(1.5 + len(members) for members in groups)


def _in_two(groups: list[list[Row]]) -> list[list[list[Row]]]:
    """The groups in two columns, as equal as their order allows."""
    cuts = [[groups[:k], groups[k:]] for k in range(1, len(groups))] or [[groups]]
    return min(cuts, key=lambda sides: max(map(_lines, sides)))


def _forest_column(axes: Axes, groups: Sequence[Sequence[Row]], lines: float) -> None:
    y, ticks = 0.0, []
    for members in groups:
        ticks.append((y, members[0].group, "bold"))
        for row in members:
            y += 1
            colour, marker = COLOURS[row.verdict]
            axes.plot([1 / row.band, row.band], [y, y], color=MUTED, lw=5, alpha=0.25, solid_capstyle="butt")
            axes.plot([row.low, row.high], [y, y], color=colour, lw=1.8)
            axes.plot(row.ratio, y, marker, color=colour, ms=4)
            ticks.append((y, row.shape if row.other == NATIVE else f"{row.shape} vs {row.other}", "normal"))
        y += 1.5
    axes.axvline(1, color=INK, lw=1)
    axes.set_ylim(lines - 0.5, -1)
    axes.set_yticks([place for place, *_ in ticks], [label for _, label, _ in ticks], fontsize=7 if lines > 30 else 7.5)
    for label, (*_, weight) in zip(axes.get_yticklabels(), ticks, strict=True):
        label.set_fontweight(weight)
    axes.grid(axis="y", visible=False)


ROOFLINE_MARKERS = [*MARKERS, "X"]  # one more than there are colours: no two ops look alike


@themed
def roofline(rows: Sequence[Row]) -> Figure:
    """Arithmetic per second against arithmetic per byte; short lines lead to the limit of each case's own."""
    fields = ["group", "intensity", "gflops_per_second", "peak_gflops_per_second", "peak_gigabytes_per_second"]
    data = pd.DataFrame([[getattr(row, field) for field in fields] for row in rows], columns=fields).dropna()
    data["limit"] = data["peak_gflops_per_second"].clip(upper=data["intensity"] * data["peak_gigabytes_per_second"])
    data[["op", "mode"]] = data["group"].str.rsplit("-", n=1, expand=True)
    figure, axes = plt.subplots(figsize=(WIDTH, 4.8))
    axes.vlines(data["intensity"], data["gflops_per_second"], data["limit"], color=GRID, lw=0.8)
    axes.plot(data["intensity"], data["limit"], "_", color=INK, ms=6, label="limit, measured beside it")
    for number, op in enumerate(sorted(data["op"].unique())):
        look: dict[str, Any] = {
            "marker": ROOFLINE_MARKERS[number % len(ROOFLINE_MARKERS)],
            "color": PALETTE[number % len(PALETTE)],
            "ls": "",
            "ms": 5.5,
        }
        for mode, face in (("train", PALETTE[number % len(PALETTE)]), ("infer", "white")):
            points = data[(data["op"] == op) & (data["mode"] == mode)]
            if len(points):
                places = points["intensity"], points["gflops_per_second"]
                axes.plot(*places, **look, markerfacecolor=face, label=f"{op}-{mode}")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must be moved", ylabel="GFLOP/s of ours")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis, LogLocator(subs=(1, 2, 5)))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@themed
def scaling(found: Sequence[Law]) -> Figure:
    """Time, and memory held for the backward pass, against sizes on logarithmic axes, with fitted slopes."""
    panels = [(unit, axis) for unit in ("ms", "MB") for axis in SIZES if _laws(found, unit, axis)]
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(WIDTH, 2.7 * lines), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (unit, axis) in zip(grid.flat, panels, strict=False):
        members = _laws(found, unit, axis)
        for number, law in enumerate(members):
            colour = PALETTE[number % len(PALETTE)]
            is_alone = sum(other.group == law.group for other in members) == 1
            what = law.group.partition("-")[2] + ("" if is_alone else f"\n{law.fixed}")
            label = f"{what}: {law.slope:.2f} ({law.native_slope:.2f})"
            axes.plot(law.sizes, law.ours, "o-", color=colour, ms=3.5, lw=1.2, label=label)
            axes.plot(law.sizes, law.native, "s--", color=colour, ms=3.5, lw=1.2, markerfacecolor="white")
        axes.set(xscale="log", yscale="log", xlabel=SIZES[axis], ylabel="ms per step" if unit == "ms" else "MB held")
        sizes = sorted({size for law in members for size in law.sizes})
        _plain_ticks(axes.xaxis, FixedLocator(sizes[:: 1 + len(sizes) // 6]))
        low, high = axes.get_ylim()
        axes.legend(fontsize=6.5, loc="upper left", handlelength=1)
        lines = sum(1 + text.get_text().count("\n") for text in axes.get_legend().get_texts())
        axes.set_ylim(low, high * (high / low) ** (0.1 * lines))  # room for the legend
        _plain_ticks(axes.yaxis, LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    return figure


@themed
def threads(found: Sequence[Law]) -> Figure:
    """How many times faster a group is on more threads than on the fewest, ours and torch.nn's, a row per group."""
    figure, axes = plt.subplots(figsize=(WIDTH, 1.3 + 0.3 * len(found)))
    for y, law in enumerate(found):
        for times, marker, face, dy in ((law.ours, "o", None, -0.12), (law.native, "s", "white", 0.12)):
            gains = [times[0] / time for time in times[1:]]
            for number, gain in enumerate(gains):
                colour = PALETTE[number % len(PALETTE)]
                axes.plot([1, gain], [y + dy, y + dy], color=colour, lw=1, alpha=0.5)
                axes.plot(gain, y + dy, marker, color=colour, ms=5.5, markerfacecolor=face or colour)
    sizes = found[0].sizes
    for number, size in enumerate(sizes[1:]):
        axes.axvline(size / sizes[0], color=PALETTE[number % len(PALETTE)], lw=1, ls=":")
    axes.axvline(1, color=INK, lw=1)
    axes.set(xscale="log", ylim=(len(found) - 0.5, -0.6), xlabel=f"times faster than on {count(sizes[0], 'thread')}")
    axes.set_yticks(range(len(found)), [law.group for law in found])
    ticks = [0.5, 0.7, 1, 1.2, 1.5, *(size / sizes[0] for size in sizes[1:])]
    low, high = axes.get_xlim()
    _plain_ticks(axes.xaxis, FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.grid(axis="y", visible=False)
    handles = [Line2D([], [], color=MUTED, ls="", marker="o", label="ours")]
    handles.append(Line2D([], [], color=MUTED, ls="", marker="s", markerfacecolor="white", label=NATIVE))
    handles += [
        Line2D([], [], color=PALETTE[number % len(PALETTE)], ls=":", label=f"{size} threads, ideal")
        for number, size in enumerate(sizes[1:])
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _laws(found: Sequence[Law], unit: str, axis: str) -> list[Law]:
    return [law for law in found if (law.unit, law.axis) == (unit, axis)]


@themed
def heat_map(rows: Sequence[Row]) -> Figure:
    """Ratio by batch (times models) and hidden units, the geometric mean where several cases share a cell."""
    cells: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row in rows:
        case = parse(row.case)
        if isinstance(case, Recurrent):
            cells.setdefault(row.group, {}).setdefault((case.batch, case.hidden_size), []).append(row.ratio)
    widths = sorted({width for found in cells.values() for _, width in found})
    batches = sorted({batch for found in cells.values() for batch, _ in found})
    columns = min(len(cells), max(1, int(6.4 / (0.25 + 0.26 * len(batches)))))
    lines = -(-len(cells) // columns)
    size = (WIDTH, (0.8 + 0.38 * len(widths)) * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True)
    for axes in grid.flat[len(cells) :]:
        axes.set_visible(False)
    for axes, (group, found) in zip(grid.flat, cells.items(), strict=False):
        table = np.full((len(widths), len(batches)), np.nan)
        for (batch, width), ratios in found.items():
            table[widths.index(width), batches.index(batch)] = np.exp(np.mean(np.log(ratios)))
        sns.heatmap(
            table,
            ax=axes,
            cmap="PuOr",
            norm=LogNorm(1 / 8, 8),
            annot=True,
            fmt=".1f",
            annot_kws={"fontsize": 7},
            cbar=False,
            linewidths=1,
            linecolor=GRID,
            xticklabels=batches,
            yticklabels=widths,
        )
        axes.set_title(group.removeprefix("recurrent-"))
        axes.set(xlabel="batch")
        axes.grid(visible=False)
    for axes in grid[:, 0]:
        axes.set_ylabel("hidden units")
    return figure


def drawings(results: Results, every: Sequence[Row]) -> list[Drawing]:
    """All figures that a result allows, and the scaling laws within `every` row."""
    steps = [row for row in results.rows if row.part == "step"]
    cases = [row for row in steps if row.other == NATIVE and not row.group.endswith("-runs")]  # a run is no single op
    found = [
        Drawing(
            "forest",
            "How many times faster",
            "Median of the other's time over ours, paired within blocks, with its 95 % interval clustered by process. "
            "Grey bars span the A/A band: ours against itself. Green circles are faster, grey squares the same, "
            "orange crosses slower.",
            "Forest plot of time ratios, a line per case.",
            partial(forest, steps),
            "figures.forest(rows)",
        )
    ]
    if any(row.limit_share for row in cases):
        found.append(
            Drawing(
                "roofline",
                "How much of the machine",
                "Arithmetic per second against arithmetic per byte. A dash over each case is its limit: the arithmetic "
                "peak, or what the memory bandwidth at its size allows, both measured beside it. Open markers: "
                "inference. Arithmetic is that of the direct way: what lies above its dash takes a way with fewer "
                "multiplications (Winograd's).",
                "Scatter plot of GFLOP/s against FLOP per byte, with the limit over each point.",
                partial(roofline, cases),
                "figures.roofline(rows)",
            )
        )
    if any(isinstance(parse(row.case), Recurrent) for row in cases):
        found.append(
            Drawing(
                "heat_map",
                "Where it is faster",
                "torch.nn's time over ours by batch and hidden units. Purple: ours is faster; orange: slower; "
                "empty: not measured.",
                "Heat maps of time ratios, a panel per cell and mode.",
                partial(heat_map, cases),
                "figures.heat_map(rows)",
            )
        )
    fitted = laws([row for row in every if row.part == "step" and row.other == NATIVE])
    by_size, by_threads = ([law for law in fitted if (law.axis in SIZES) is is_size] for is_size in (True, False))
    if by_size:
        found.append(
            Drawing(
                "scaling",
                "How it grows",
                "Time of a step, and what it holds for the backward pass, against one size, the others fixed, on "
                "logarithmic axes: solid is ours, dashed torch.nn's. Slopes, torch.nn's in brackets, are fitted by "
                "least squares: 1 is proportional growth.",
                "Line plots of milliseconds and megabytes against sizes, ours and torch.nn's.",
                partial(scaling, by_size),
                "figures.scaling(laws(rows))",
            )
        )
    if by_threads:
        found.append(
            Drawing(
                "threads",
                "What more threads bring",
                "How many times faster than on the fewest threads, geometric mean over the cases of a group. Dots are "
                "ours, open squares torch.nn; on the dotted line, threads share the work without loss.",
                "Dots of the gain by more threads, ours and torch.nn's, a row per group.",
                partial(threads, by_threads),
                "figures.threads([law for law in laws(rows) if law.axis == 'threads'])",
            )
        )
    return found


def write_page(results: Sequence[Results], folder: Path) -> Path:
    """`index.html` in the folder, with each figure also as PNG and SVG.

    Of several results, all but scaling laws show the first; those of threads need results of several numbers of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for drawing in drawings(results[0], [row for each in results for row in each.rows]):
        svg = next(path for path in drawing.save(folder) if path.suffix == ".svg")
        plt.close(drawing.figure)
        shown.append((drawing, inline(svg.read_text(), drawing.name)))
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader("bench", "."), jinja2.PackageLoader("ablations.report", ".")])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("benchmarks.html").render(results=results[0], drawings=shown)
    path = folder / "index.html"
    path.write_text(page)
    return path


def _plain_ticks(axis: Axis, places: Locator) -> None:
    axis.set_major_locator(places)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1e4 else f"{x:,.0f}"))
