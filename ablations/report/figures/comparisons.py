"""How levels differ: the forest of effects, every seed, and what levels do together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ablations.report.evidence import REFERENCES
from ablations.report.figures.theme import (
    GRID,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    VERDICTS,
    WIDTH,
    Figure,
    bounds_of,
    height_of,
    interval_bar,
    interval_text,
    present_levels,
    reach,
    response_of,
    themed,
    wrapped,
)
from ablations.report.numbers import heading, in_sentence, number, scale, unit_of_difference, with_unit
from ablations.statistics import mean_interval, one_factor_runs

MOST_LEVELS, FEWEST_LEVELS = 11, 8  # that share a row of panels; a shorter row does not fill the width
MOST_DOTS = 400  # of a panel, that stand apart; more are small and faint, and pixels in an SVG
HIGHER = 1.5  # times the other rows
LONGEST_NAME = 5  # letters of a level's name that stand upright
GAP = 0.35  # lines between the factors of a forest
LEAST_SHARE = 0.4  # of an axis, that references leave to what the networks do


@themed
def forest(effects: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Difference to the baseline of every level in the primary response, with 95 % intervals and margins.

    A row that reaches far beyond the others ends in an arrow; its numbers stand beside it.
    """
    response = declaration["responses"][0]
    rows = effects[(effects["response"] == response["name"]) & (effects["n"] > 0)]
    labels = {factor["name"]: heading(factor["label"]) for factor in declaration["factors"]}
    by, y, ticks = scale(response), 0.0, []
    end = forest_reach(rows) * by
    sizes = rows.groupby("factor", sort=False).size()
    lines = len(rows) + int((sizes > 1).sum()) + GAP * len(sizes)
    figure = Figure(figsize=(WIDTH, height_of(lines, 0.3, 1.3)))
    axes = figure.add_subplot()
    texts = axes.secondary_yaxis("right")
    for factor, group in rows.groupby("factor", sort=False):
        is_alone = len(group) == 1
        if not is_alone:
            ticks.append((y, labels[factor], ""))
            y += 1
        for row in group.itertuples():
            if math.isfinite(row.margin):
                band = Rectangle((-row.margin * by, y - 0.42), 2 * row.margin * by, 0.84, color=GRID, alpha=0.75, lw=0)
                axes.add_patch(band)
            colour, marker = VERDICTS[row.verdict]
            face = "white" if row.verdict in ("undecided", "") else colour
            interval_bar(axes, y, [row.mean * by, row.low * by, row.high * by], (-end, end), colour, marker, face)
            ticks.append((y, f"{labels[factor]}: {row.level}" if is_alone else row.level, interval_text(row, by)))
            y += 1
        y += GAP
    axes.axvline(0, color=INK, lw=1)
    axes.set_ylim(y - GAP - 0.4, -0.6)
    drawn = rows[["mean", "low", "high"]].stack().mul(by).clip(-end, end)
    widest = float(rows["margin"].max()) * by if rows["margin"].notna().any() else 0.0
    low, high = min([*drawn, -widest, 0.0]), max([*drawn, widest, 0.0])
    edge = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - edge, high + edge)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_yticks([t for t, _, _ in ticks], [label for _, label, _ in ticks])
    texts.set_yticks([t for t, _, _ in ticks], [text for _, _, text in ticks])
    for side in (axes.yaxis, texts.yaxis):
        side.set_tick_params(length=0)
    for label, (_, _, text) in zip(axes.get_yticklabels(), ticks, strict=True):
        label.set_fontweight("normal" if text else "bold")
    axes.grid(axis="y", visible=False)
    for spine in (axes.spines["left"], texts.spines["right"]):
        spine.set_visible(False)
    unit = unit_of_difference(response).strip()
    sides = ("better", "worse") if response["better"] == "lower" else ("worse", "better")
    measured = f"difference in {in_sentence(response['label'])}" + (f" ({unit})" if unit else "")
    axes.set_xlabel(wrapped(measured[0].upper() + measured[1:], 70))
    for text, dx, align in ((f"← {sides[0]}", -6, "right"), (f"{sides[1]} →", 6, "left")):
        axes.annotate(
            text, (0, 1), xycoords=("data", "axes fraction"), xytext=(dx, 3), textcoords="offset points", ha=align,
            color=MUTED, fontsize=8.5,
        )  # fmt: skip
    handles: list[Artist] = [
        Line2D([], [], color=c, marker=m, ms=6, mew=1.5, lw=2, label=word,
               markerfacecolor="white" if word == "undecided" else c)
        for word, (c, m) in VERDICTS.items() if word and word in set(rows["verdict"])
    ]  # fmt: skip
    if rows["margin"].notna().any():
        handles.append(Patch(color=GRID, alpha=0.75, label="too small to matter"))
    if handles:
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handlelength=1.6
        )
    return figure


def forest_reach(rows: pd.DataFrame) -> float:
    """How far the axis of a forest goes to either side, in the response's unit: see `theme.reach`."""
    widest = rows[["mean", "low", "high"]].abs().max(axis=1)
    return reach(widest, 1.5 * rows["margin"].max() if rows["margin"].notna().any() else 0.0)


@themed
def levels(runs: pd.DataFrame, declaration: Mapping[str, Any], response: str | None = None) -> Figure:
    """A response (the primary one by default) per level: every seed, their mean and its 95 % t interval."""
    chosen = response_of(declaration, response)
    done = runs[np.isfinite(runs[chosen["name"]].astype(float))]
    data = one_factor_runs(done, declaration)
    factors = [f for f in declaration["factors"] if data.loc[data["factor"] == f["name"], "level"].nunique() > 1]
    factors = factors or declaration["factors"][:1]
    present = {f["name"]: present_levels(data, f) for f in factors}
    data = data.assign(y=data[chosen["name"]].astype(float) * scale(chosen))
    window, rows = _window(data, chosen["unit"]), _rows(factors, present)
    means = _reference_means(done, chosen) if chosen is declaration["responses"][0] else {}
    ends = _with_references(window, means.values())
    figure = Figure(figsize=(WIDTH, 3.6 if len(rows) == 1 else max(min(2.5 * len(rows), PAGE), 1.9 * len(rows))))
    named = rows if len(rows) <= 2 else rows[:1]  # beside which the references are named; it is higher, if alone
    heights = [HIGHER if len(rows) > len(named) and place == 0 and means else 1.0 for place in range(len(rows))]
    grid, panels = figure.add_gridspec(len(rows), 1, height_ratios=heights), list[Axes]()
    for place, row in enumerate(rows):
        ratios = [len(present[f["name"]]) for f in row]
        if len(rows) > 1 and sum(ratios) < FEWEST_LEVELS:
            ratios.append(FEWEST_LEVELS - sum(ratios))
        cells = grid[place, 0].subgridspec(1, len(ratios), width_ratios=ratios)
        for column, factor in enumerate(row):
            axes = figure.add_subplot(cells[0, column], sharey=panels[0] if panels else None)
            names = present[factor["name"]]
            _seeds_and_means(axes, data[data["factor"] == factor["name"]], names, ends, chosen["unit"])
            axes.set_title(wrapped(heading(factor["label"]), 6 * len(names)), fontsize=8.5)
            if max(map(len, names)) > LONGEST_NAME:
                axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
            axes.tick_params(axis="y", labelleft=column == 0)
            for value in means.values():
                axes.axhline(value, color=PALETTE[1], lw=0.9, ls="--", zorder=0)
            panels.append(axes)
        if len(rows) <= 2:
            panels[-len(row)].set_ylabel(wrapped(with_unit(chosen), 38 if len(rows) == 1 else 24))
        if place < len(named):
            _name_references(panels[-1], means, ends)
    if len(rows) > 2:
        figure.supylabel(with_unit(chosen), fontsize=9.5)
        panels[0].yaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_ylim(*ends)
    return figure


def _window(data: pd.DataFrame, unit: str) -> tuple[float, float]:
    """What of the column `y` is shown: all seeds, but of levels that lie far from the baseline's median, see `reach`.

    Intervals of means may widen it by half.
    """
    first = data["level"].iloc[0] if len(data) else ""
    center = float(data.loc[data["level"] == first, "y"].median()) if len(data) else 0.0
    span = reach((data["y"] - center).abs().groupby([data["factor"], data["level"]]).max())
    low, high = max(data["y"].min(), center - span), min(data["y"].max(), center + span)
    intervals = [mean_interval(of_level)[1:] for _, of_level in data.groupby(["factor", "level"])["y"]]
    wide, bounds = 0.5 * (high - low), bounds_of(data["y"], unit)
    bottom = min([low, *(i[0] for i in intervals if math.isfinite(i[0]))])
    top = max([high, *(i[1] for i in intervals if math.isfinite(i[1]))])
    low, high = max(bottom, low - wide, bounds[0]), min(top, high + wide, bounds[1])
    edge = 0.06 * (high - low) or 1.0
    return low - edge, high + edge


def _rows(factors: Sequence[Mapping[str, Any]], present: Mapping[str, list[str]]) -> list[list[Mapping[str, Any]]]:
    """The factors in rows of at most `MOST_LEVELS` levels."""
    rows: list[list[Mapping[str, Any]]] = [[]]
    for factor in factors:
        if rows[-1] and sum(len(present[f["name"]]) for f in [*rows[-1], factor]) > MOST_LEVELS:
            rows.append([])
        rows[-1].append(factor)
    return rows


def _seeds_and_means(axes: Axes, data: pd.DataFrame, names: list[str], window: tuple[float, float], unit: str) -> None:
    """A panel of `levels`; a level whose mean lies outside the window is an arrow with that mean."""
    data = data.assign(x=data["level"].map(names.index))
    many = len(data) > MOST_DOTS
    data = data.assign(x=data["x"] - 0.16).sort_values(["seed", "x"])
    ends = np.flatnonzero(np.diff(data["seed"])) + 1
    runs = np.split(data[["x", "y"]].to_numpy(), ends)
    faint = LineCollection(runs, colors=MUTED, linewidths=0.6, alpha=0.05 if many else 0.35, zorder=1, rasterized=many)
    axes.add_collection(faint)
    dots = {"s": 4, "alpha": 0.25, "rasterized": True} if many else {"s": 16, "alpha": 0.7}
    sns.scatterplot(data=data, x="x", y="y", ax=axes, color=MUTED, lw=0, **dots)
    bounds, edge = bounds_of(data["y"], unit), 0.05 * (window[1] - window[0])
    for x, name in enumerate(names):
        mean, *interval = mean_interval(data.loc[data["level"] == name, "y"])
        low, high = np.clip(interval, *bounds)
        colour = INK if x == 0 else PALETTE[0]
        axes.plot([x + 0.16] * 2, [low, high], color=colour, lw=2, zorder=3)
        axes.plot(x + 0.16, mean, "o", color=colour, ms=6.5, zorder=4)
        if not window[0] <= mean <= window[1]:
            is_above = mean > window[1]
            axes.plot(x, window[1] - edge if is_above else window[0] + edge, "^" if is_above else "v", color=colour)
            axes.annotate(
                number(mean), (x, window[1] - 2 * edge if is_above else window[0] + 2 * edge), color=colour,
                fontsize=8, ha="center", va="top" if is_above else "bottom",
            )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="", ylabel="")


def _reference_means(done: pd.DataFrame, response: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.replace(" extrapolation", ""): float(done[column].mean()) * scale(response)
        for column, name in REFERENCES.items()
        if column in done and done[column].notna().any()
    }


def _with_references(window: tuple[float, float], references: Iterable[float]) -> tuple[float, float]:
    """The window widened to references, the nearest first, while what the networks do keeps `LEAST_SHARE` of it."""
    bottom, top = window
    for value in sorted(references, key=lambda value: abs(value - sum(window) / 2)):
        edge = 0.05 * (window[1] - window[0])
        wide = min(bottom, value - edge), max(top, value + edge)
        if window[1] - window[0] > LEAST_SHARE * (wide[1] - wide[0]):
            bottom, top = wide
    return bottom, top


def _name_references(axes: Axes, means: Mapping[str, float], ends: tuple[float, float]) -> None:
    """Names of the references beside their lines; of those outside, the value and where they lie."""
    apart, places = 0.075 * (ends[1] - ends[0]), list[float]()
    ordered = sorted(means.items(), key=lambda item: item[1])
    for _, value in ordered:
        places.append(max([float(np.clip(value, *ends)), *(place + apart for place in places[-1:])]))
    for k in reversed(range(len(places))):  # those pushed beyond the upper end go back down
        places[k] = min(places[k], places[k + 1] - apart if k + 1 < len(places) else ends[1])
    leader = {"arrowstyle": "-", "color": PALETTE[1], "lw": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    for (name, value), place in zip(ordered, places, strict=True):
        is_outside = not ends[0] <= value <= ends[1]
        text = f"{name}: {value:.3g} {'↑' if value > ends[1] else '↓'}" if is_outside else name
        axes.annotate(
            text, (1.0, float(np.clip(value, *ends))), (1.06, place), xycoords=("axes fraction", "data"),
            va="center", fontsize=8, color=PALETTE[1], annotation_clip=False,
            arrowprops=None if is_outside else leader,
        )  # fmt: skip
