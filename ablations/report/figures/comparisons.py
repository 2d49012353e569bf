"""How levels differ: the forest of effects, every seed, and what levels do together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ablations.report.evidence import REFERENCES
from ablations.report.figures.theme import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    VERDICTS,
    WIDTH,
    bounds_of,
    interval_text,
    present_levels,
    response_of,
    themed,
    wrapped,
)
from ablations.report.numbers import heading, in_sentence, scale, unit_of_difference, with_unit
from ablations.statistics import mean_interval, one_factor_runs

MOST_LEVELS, FEWEST_LEVELS = 13, 8  # that share a row of panels; a shorter row does not fill the width
LONGEST_NAME = 5  # letters of a level's name that stand upright


@themed
def forest(effects: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Difference to the baseline of every level in the primary response, with 95 % intervals and margins."""
    response = declaration["responses"][0]
    rows = effects[(effects["response"] == response["name"]) & (effects["n"] > 0)]
    labels = {factor["name"]: heading(factor["label"]) for factor in declaration["factors"]}
    by, y, ticks = scale(response), 0.0, []
    figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * len(rows) + 0.42 * rows["factor"].nunique()))
    axes = figure.add_subplot()
    texts = axes.secondary_yaxis("right")
    for factor, group in rows.groupby("factor", sort=False):
        ticks.append((y, labels[factor], ""))
        for row in group.itertuples():
            y += 1
            if math.isfinite(row.margin):
                band = Rectangle((-row.margin * by, y - 0.42), 2 * row.margin * by, 0.84, color=GRID, alpha=0.75, lw=0)
                axes.add_patch(band)
            colour, marker = VERDICTS[row.verdict]
            if math.isfinite(row.low):
                axes.plot([row.low * by, row.high * by], [y, y], color=colour, lw=2.2, solid_capstyle="butt")
            face = "white" if row.verdict in ("undecided", "") else colour
            axes.plot(row.mean * by, y, marker, color=colour, markerfacecolor=face, ms=7, mew=1.6)
            ticks.append((y, row.level, interval_text(row, by)))
        y += 1.3
    axes.axvline(0, color=INK, lw=1)
    axes.set_ylim(y - 0.5, -0.6)
    axes.margins(x=0.06)
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


@themed
def levels(runs: pd.DataFrame, declaration: Mapping[str, Any], response: str | None = None) -> Figure:
    """A response (the primary one by default) per level: every seed, their mean and its 95 % t interval."""
    chosen = response_of(declaration, response)
    done = runs[np.isfinite(runs[chosen["name"]].astype(float))]
    data = one_factor_runs(done, declaration)
    factors = [f for f in declaration["factors"] if data.loc[data["factor"] == f["name"], "level"].nunique() > 1]
    factors = factors or declaration["factors"][:1]
    present = {f["name"]: present_levels(data, f) for f in factors}
    rows = _rows(factors, present)
    figure = Figure(figsize=(WIDTH, 3.6 if len(rows) == 1 else 2.5 * len(rows)))
    grid, panels = figure.add_gridspec(len(rows), 1), list[Axes]()
    for place, row in enumerate(rows):
        ratios = [len(present[f["name"]]) for f in row]
        if len(rows) > 1 and sum(ratios) < FEWEST_LEVELS:
            ratios.append(FEWEST_LEVELS - sum(ratios))
        cells = grid[place, 0].subgridspec(1, len(ratios), width_ratios=ratios)
        for column, factor in enumerate(row):
            axes = figure.add_subplot(cells[0, column], sharey=panels[0] if panels else None)
            names = present[factor["name"]]
            _seeds_and_means(axes, data[data["factor"] == factor["name"]], names, chosen)
            axes.set_title(wrapped(heading(factor["label"]), 1 + 6 * len(names)))
            axes.tick_params(axis="x", rotation=30 if max(map(len, names)) > LONGEST_NAME else 0)
            axes.tick_params(axis="y", labelleft=column == 0)
            panels.append(axes)
        panels[-len(row)].set_ylabel(wrapped(with_unit(chosen), 38 if len(rows) == 1 else 24))
    if chosen is declaration["responses"][0]:
        _reference_lines(panels, done, chosen)
    return figure


def _rows(factors: Sequence[Mapping[str, Any]], present: Mapping[str, list[str]]) -> list[list[Mapping[str, Any]]]:
    """The factors in rows of at most `MOST_LEVELS` levels."""
    rows: list[list[Mapping[str, Any]]] = [[]]
    for factor in factors:
        if rows[-1] and sum(len(present[f["name"]]) for f in [*rows[-1], factor]) > MOST_LEVELS:
            rows.append([])
        rows[-1].append(factor)
    return rows


def _seeds_and_means(axes: Axes, data: pd.DataFrame, names: list[str], response: Mapping[str, Any]) -> None:
    data = data.assign(y=data[response["name"]].astype(float) * scale(response), x=data["level"].map(names.index))
    runs = [run[["x", "y"]].to_numpy() - [0.16, 0] for _, run in data.sort_values("x").groupby("seed")]
    axes.add_collection(LineCollection(runs, colors=MUTED, linewidths=0.6, alpha=0.35, zorder=1))
    sns.scatterplot(data=data.assign(x=data["x"] - 0.16), x="x", y="y", ax=axes, s=16, color=MUTED, alpha=0.7, lw=0)
    bounds = bounds_of(data["y"], response["unit"])
    for x, name in enumerate(names):
        mean, *interval = mean_interval(data.loc[data["level"] == name, "y"])
        low, high = np.clip(interval, *bounds)
        colour = INK if x == 0 else PALETTE[0]
        axes.plot([x + 0.16] * 2, [low, high], color=colour, lw=2, zorder=3)
        axes.plot(x + 0.16, mean, "o", color=colour, ms=6.5, zorder=4)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="", ylabel="")


def _reference_lines(panels: Any, done: pd.DataFrame, response: Mapping[str, Any]) -> None:
    """Dashed lines at the references, unless they would squeeze what the networks do: those are only named."""
    low, high = panels[0].get_ylim()
    means = {name: float(done[name].mean()) * scale(response) for name in REFERENCES if name in done}
    styles = dict(zip(means, itertools.cycle(("--", "-.", ":")), strict=False))
    bottom, top, label_at = low, high, -math.inf
    for name, level in sorted(means.items(), key=lambda item: abs(item[1] - (low + high) / 2)):
        wide = min(bottom, level), max(top, level)
        if high - low > 0.4 * (wide[1] - wide[0]):
            bottom, top = wide
            for axes in panels:
                axes.axhline(level, color=PALETTE[1], lw=1.2, ls=styles[name], zorder=0)
    edge = 0.05 * (top - bottom)
    panels[0].set_ylim(bottom - edge, top + edge)
    for name, level in sorted(means.items(), key=lambda item: item[1]):
        label, place = REFERENCES[name].replace(" extrapolation", ""), level
        if not bottom <= level <= top:
            label, place = f"{label}: {level:.3g} {'↑' if level > top else '↓'}", top if level > top else bottom
        label_at = max(place, label_at + 1.6 * edge)
        panels[-1].annotate(
            label, (1.0, label_at), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8, color=PALETTE[1],
        )  # fmt: skip
