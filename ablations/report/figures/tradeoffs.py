"""What accuracy costs: against parameters, operations, time and memory, with the Pareto front; timing ratios."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation

from ablations.report.figures.learning import WIDE, logarithmic_below
from ablations.report.figures.theme import (
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    WIDTH,
    Figure,
    bounds_of,
    height_of,
    interval_bar,
    is_accuracy,
    reach,
    response_of,
    themed,
    wrapped,
)
from ablations.report.numbers import amount, heading, number, scale, with_unit
from ablations.statistics import baseline_runs, mean_interval, one_factor_runs, paired_ratio, pareto_front

LEAST_REACH = math.log(1.1)  # of a figure of ratios to either side of 1
MOST_ASIDE = 6  # levels of equal cost that can stand side by side
NATIVE = "native_"  # what the name of a timing begins with that was taken without the project's kernels


@dataclass
class _Point:
    """A level in a figure of accuracy against its cost; `aside` moves it, in points, from others of its size."""

    x: float
    y: float
    low: float
    high: float
    colour: str
    marker: str
    size: float
    text: str
    aside: float = 0.0


@themed
def tradeoff(
    runs: pd.DataFrame,
    declaration: Mapping[str, Any],
    cost: str = "parameters",
    published: pd.DataFrame | None = None,
) -> Figure:
    """The primary response against a cost: a point per level with its 95 % t interval, and the Pareto front.

    The front joins the conditions that no other beats in both, on means over seeds; conditions that change several
    factors are small grey dots. Accuracies whose errors span more than a factor of 10 have an axis that is logarithmic
    in errors. `published` has rows of what others reached, hollow diamonds: the columns name, and
    those of the cost and of the primary response.
    """
    response, price = response_of(declaration), response_of(declaration, cost)
    runs = runs[np.isfinite(runs[cost].astype(float)) & np.isfinite(runs[response["name"]].astype(float))]
    data, by = one_factor_runs(runs, declaration), scale(response)
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.add_subplot()
    bounds = bounds_of(runs[response["name"]] * by, response["unit"])
    points: list[_Point] = []
    for k, factor in enumerate(declaration["factors"]):
        for level in factor["levels"]:
            mine = data[(data["factor"] == factor["name"]) & (data["level"] == level["name"])]
            is_baseline = level is factor["levels"][0]
            if len(mine) and not (is_baseline and points):
                look = (
                    (INK, "*", 13, "baseline")
                    if is_baseline
                    else (PALETTE[k % 6], MARKERS[(k + k // 6) % 6], 7, level["name"])
                )
                y, low, high = (v * by for v in mean_interval(mine[response["name"]]))
                points.append(_Point(float(mine[cost].mean()), y, *np.clip((low, high), *bounds), *look))
    others = [] if published is None else published.to_dict("records")
    top = _top([*(point.y for point in points), *(row[response["name"]] * by for row in others)], response)
    for point in points:
        point.high = min(point.high, top)
    names = [factor["name"] for factor in declaration["factors"] if factor["name"] in runs]
    conditions = runs.groupby(names)[[cost, response["name"]]].mean()
    crossed = (
        runs[~runs.set_index(names).index.isin(data.set_index(names).index)]
        .groupby(names)[[cost, response["name"]]]
        .mean()
    )
    if len(crossed):
        axes.plot(crossed[cost], crossed[response["name"]] * by, ".", color=MUTED, ms=4, alpha=0.6, zorder=1)
    front = pareto_front(conditions, cost, response["name"], response["better"])
    axes.plot(front[cost], front[response["name"]] * by, color=MUTED, lw=1.2, ls="--", zorder=1)
    crowded = False
    for x in dict.fromkeys(point.x for point in points):
        together = [point for point in points if point.x == x]
        if len(together) > MOST_ASIDE:
            crowd = [point for point in together if point.marker != "*"]
            axes.plot([x] * len(crowd), [point.y for point in crowd], ".", color=MUTED, ms=5, alpha=0.7, zorder=1)
            points = [point for point in points if point not in crowd]
            together = [point for point in together if point not in crowd]
            crowded = True
        for k, point in enumerate(together):
            point.aside = 10.0 * (k - (len(together) - 1) / 2)
            beside = axes.transData + ScaledTranslation(point.aside / 72, 0, figure.dpi_scale_trans)
            axes.plot([x, x], [point.low, point.high], color=point.colour, lw=1.6, alpha=0.7, transform=beside)
            axes.plot(x, point.y, point.marker, color=point.colour, ms=point.size, transform=beside)
    for row in others:
        y = row[response["name"]] * by
        axes.plot(row[cost], y, "D", color=MUTED, ms=6, markerfacecolor="white")
        points.append(_Point(row[cost], y, math.nan, math.nan, MUTED, "D", 6, row["name"]))
    shown = [(p.x, y) for p in points for y in (p.y, p.low, p.high) if math.isfinite(y)]
    axes.update_datalim(shown)
    axes.autoscale_view()
    handles = [
        Line2D([], [], ls="", marker=MARKERS[(k + k // 6) % 6], color=PALETTE[k % 6], label=heading(factor["label"]))
        for k, factor in enumerate(declaration["factors"])
        if (PALETTE[k % 6], MARKERS[(k + k // 6) % 6]) in {(point.colour, point.marker) for point in points}
    ]
    handles.append(Line2D([], [], ls="--", lw=1.2, color=MUTED, label="Pareto front"))
    if others:
        handles.append(Line2D([], [], ls="", marker="D", color=MUTED, markerfacecolor="white", label="Published"))
    axes.set_xscale("log")
    axes.margins(x=0.14, y=0.12)
    if top < 100:
        logarithmic_below(axes, 100)
        axes.set_ylim(top=top)
    _plain_log_ticks(axes, price)
    side_by_side = " (levels of equal cost stand side by side)" if any(point.aside for point in points) else ""
    side_by_side = " (small dots: levels that cost what the baseline does)" if crowded else side_by_side
    axes.set_xlabel(heading(price["label"]) + side_by_side)
    axes.set_ylabel(wrapped(with_unit(response), 44))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4 if len(handles) < 9 else 3))
    on_front = set(zip(front[cost], front[response["name"]] * by, strict=True))
    points.sort(key=lambda point: (point.marker != "*", (point.x, point.y) not in on_front))
    _place_labels(figure, axes, points)
    return figure


def _top(values: Sequence[float], response: Mapping[str, Any]) -> float:
    """Where an axis ends that is logarithmic in errors: at half of the least; infinite where it need not be so."""
    errors = [100 - value for value in values]
    has_errors = is_accuracy(response) and min(errors, default=0) > 0
    return 100 - min(errors) / 2 if has_errors and max(errors) > WIDE * min(errors) else math.inf


@themed
def timing_ratios(table: pd.DataFrame, label: str = "Time over native (left of 1 is faster)") -> Figure:
    """Ratios with 95 % intervals on a logarithmic axis, a row per line of the table.

    Its columns are those of `timing_table`: label, ratio, low, high, n.
    """
    figure = Figure(figsize=(WIDTH, height_of(len(table), 0.34, 1.2)))
    axes = figure.add_subplot()
    texts = axes.secondary_yaxis("right")
    rows: list[Any] = list(table.itertuples())
    farthest = np.log(table[["ratio", "low", "high"]].to_numpy(float))
    end = math.exp(reach(np.nanmax(np.abs(farthest), axis=1), LEAST_REACH))
    for y, row in enumerate(rows):
        faster = row.high < 1
        colour = PALETTE[2] if faster else PALETTE[1] if row.low > 1 else MUTED
        face = colour if colour != MUTED else "white"
        interval_bar(axes, y, [row.ratio, row.low, row.high], (1 / end, end), colour, "o", face)
    axes.axvline(1, color=INK, lw=1)
    axes.set_xscale("log")
    axes.set_ylim(len(table) - 0.5, -0.6)
    axes.set_yticks(range(len(table)), table["label"])
    texts.set_yticks(range(len(table)), [_ratio_text(row) for row in rows])
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(MaxNLocator(6) if high < 4 * low else _log_locator(low, high))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", visible=False)
    for side, spine in ((axes.yaxis, axes.spines["left"]), (texts.yaxis, texts.spines["right"])):
        side.set_tick_params(length=0)
        spine.set_visible(False)
    axes.set_xlabel(label)
    return figure


def timing_table(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> pd.DataFrame:
    """Ratios of every timing that was also taken natively (`NAME` and `native_NAME`), paired by seed, per level.

    Columns: label, timing, ratio, low, high, n; empty if no timing has a native one.
    """
    timings = [str(name) for name in runs if f"{NATIVE}{name}" in runs]
    data = one_factor_runs(runs, declaration)
    groups = [("baseline", baseline_runs(runs, declaration))]
    for factor in declaration["factors"]:
        for level in factor["levels"][1:]:
            mine = data[(data["factor"] == factor["name"]) & (data["level"] == level["name"])]
            groups.append((f"{factor['name']} {level['name']}", mine))
    rows = []
    for timing in timings:
        for label, mine in groups:
            by_seed = mine.set_index("seed")
            found = paired_ratio(by_seed[timing].astype(float), by_seed[f"{NATIVE}{timing}"].astype(float))
            if found.n:
                what = label if len(timings) == 1 else f"{label}, {timing.replace('_', ' ')}"
                ratio = {"ratio": 1 + found.mean, "low": 1 + found.low, "high": 1 + found.high}
                rows.append({"label": what, "timing": timing, **ratio, "n": found.n})
    return pd.DataFrame(rows)


def _ratio_text(row: Any) -> str:
    if not math.isfinite(row.low):
        return f"{_ratio(row.ratio)}  (n = {row.n})"
    return f"{_ratio(row.ratio)}  [{_ratio(row.low)}, {_ratio(row.high)}]"


def _ratio(x: float) -> str:
    return number(x, 2 if 0.1 <= x < 100 else None)


def _log_locator(low: float, high: float) -> LogLocator:
    return LogLocator(subs=(1,) if high > 1000 * low else (1, 2, 5))


def _plain_log_ticks(axes: Axes, price: Mapping[str, Any]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, at powers alone over a wide range, written out with their unit."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(_log_locator(low, high))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: _tick(t, price["unit"])))
    axes.xaxis.set_minor_locator(NullLocator())


def _tick(x: float, unit: str) -> str:
    """`3.5 ms` rather than `3.50 ms`."""
    return re.sub(r"\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)", r"\1", amount(float(f"{x:.6g}"), unit))


def _place_labels(figure: Figure, axes: Axes, points: list[_Point]) -> None:
    """Write each label beside its point, at the first of eight places that meets no other label or point, if any."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    pixels = figure.dpi / 72
    shown = [(p, *axes.transData.transform((p.x, p.y))) for p in points]
    taken = [Bbox.from_bounds(x + pixels * p.aside - 5, y - 5, 10, 10) for p, x, y in shown]
    places = [(8, 0), (-8, 0), (7, 9), (-7, 9), (7, -9), (-7, -9), (8, 18), (-8, -18)]
    for point in points:
        for dx, dy in places:
            note = axes.annotate(
                point.text, (point.x, point.y), (point.aside + dx, dy), textcoords="offset points", color=point.colour,
                fontsize=8.5, va="center", ha="left" if dx > 0 else "right",
            )  # fmt: skip
            box = note.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()
