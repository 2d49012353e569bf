"""What two changes do together: interaction plots, heat maps, and performance profiles over many conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from ablations.report.figures.theme import (
    MUTED,
    WIDTH,
    Figure,
    level_colours,
    present_levels,
    response_of,
    themed,
    wrapped,
)
from ablations.report.numbers import decimals, heading, in_sentence, number, scale, unit_of_difference, with_unit
from ablations.statistics import crossed_cells, interactions, performance_profile

MOST_PANELS = 4
MOST_LETTERS = 32  # of the names of levels below a panel that stand upright
Pairs = Sequence[tuple[str, str]]


@themed
def interaction_plot(
    runs: pd.DataFrame, declaration: Mapping[str, Any], pairs: Pairs | None = None, response: str | None = None
) -> Figure:
    """Difference to the baseline of two factors changed together, a panel per pair of factors, 95 % paired t intervals.

    Dashed lines show what the sum of both changes alone would be: where the solid line leaves the dashed one, the
    factors interact. `pairs` are the four with the largest interactions by default.
    """
    chosen = response_of(declaration, response)
    pairs = pairs or strongest_pairs(runs, declaration, chosen["name"])
    figure, panels = _grid(len(pairs))
    for axes, (one, other) in zip(panels, pairs, strict=False):
        cells = _crossed(runs, declaration, one, other, chosen["name"])
        columns = list(dict.fromkeys(cells["level"]))
        factor = _factor(declaration, other)
        colours, shown = level_colours(factor), list(dict.fromkeys(cells["other_level"]))
        for k, name in enumerate(shown):
            line = cells[cells["other_level"] == name]
            x = line["level"].map(columns.index) + 0.05 * (k - (len(shown) - 1) / 2)
            mean, low, high, sum_alone = (line[c] * scale(chosen) for c in ("mean", "low", "high", "expected"))
            axes.vlines(x, low, high, color=colours[name], lw=1.6)
            axes.plot(x, mean, "o-", color=colours[name], lw=1.6, ms=5, label=name)
            if name != factor["levels"][0]["name"]:
                axes.plot(x, sum_alone, "--", color=colours[name], lw=1.1, alpha=0.8)
        axes.axhline(0, color=MUTED, lw=0.8, zorder=0)
        axes.set_xticks(range(len(columns)), columns)
        if sum(map(len, columns)) > MOST_LETTERS:
            axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.4, len(columns) - 0.6)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(heading(_factor(declaration, one)["label"]))
        axes.legend(
            title=heading(factor["label"]), title_fontsize=8.5, alignment="left", ncols=len(shown),
            loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, columnspacing=1.2, handlelength=1.6,
        )  # fmt: skip
    unit = unit_of_difference(chosen).strip()
    label = f"Difference in {in_sentence(chosen['label'])}" + (f" ({unit})" if unit else "")
    figure.supylabel(wrapped(label, 60 if len(pairs) > 2 else 40), fontsize=9.5)
    return figure


@themed
def heat_map(
    runs: pd.DataFrame, declaration: Mapping[str, Any], pairs: Pairs | None = None, response: str | None = None
) -> Figure:
    """Mean response where two factors were crossed, a panel per pair; colours show the difference to the baseline cell.

    Blue is better, orange worse, on one scale for all panels; `pairs` as in `interaction_plot`.
    """
    chosen = response_of(declaration, response)
    by, sign = scale(chosen), 1.0 if chosen["better"] == "higher" else -1.0
    pairs = pairs or strongest_pairs(runs, declaration, chosen["name"])
    tables = [_crossed(runs, declaration, one, other, chosen["name"]) for one, other in pairs]
    largest = max(float(table["mean"].abs().max()) for table in tables) or 1.0
    figure, panels = _grid(len(pairs))
    colours = sns.diverging_palette(35, 250, s=85, l=60, as_cmap=True)
    for axes, (one, other), table in zip(panels, pairs, tables, strict=False):
        order = [list(dict.fromkeys(table[column])) for column in ("other_level", "level")]
        gain = sign * table.pivot(index="other_level", columns="level", values="mean").loc[order[0], order[1]] / largest
        text = table.assign(text=[_cell_text(row, by) for row in table.itertuples()])
        text = text.pivot(index="other_level", columns="level", values="text").loc[order[0], order[1]]
        sns.heatmap(
            gain, annot=text, fmt="", cmap=colours, vmin=-1, vmax=1, cbar=False, ax=axes, linewidths=1.5,
            annot_kws={"fontsize": 8, "color": "black"},
        )  # fmt: skip
        axes.set_xlabel(heading(_factor(declaration, one)["label"]))
        axes.set_ylabel(heading(_factor(declaration, other)["label"]))
        axes.tick_params(length=0)
        axes.tick_params(axis="y", rotation=0)
    return figure


@themed
def profiles(runs: pd.DataFrame, declaration: Mapping[str, Any], factor: str, response: str | None = None) -> Figure:
    """Share of runs at least as good as a value, a line per level of a factor, over all settings of the others.

    Bands are 95 % intervals from resampling seeds within conditions. ValueError below eight settings of the others.
    """
    chosen, levels = response_of(declaration, response), _factor(declaration, factor)
    thresholds = np.quantile(runs.loc[runs["status"] == "done", chosen["name"]].astype(float), np.linspace(0, 1, 120))
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.add_subplot()
    colours = level_colours(levels)
    for name, scores in scores_by_level(runs, declaration, factor, chosen["name"]).items():
        colour, line = colours[name], performance_profile(scores, list(thresholds), chosen["better"])
        x = line["threshold"] * scale(chosen)
        axes.fill_between(x, 100 * line["low"], 100 * line["high"], color=colour, alpha=0.18, lw=0)
        axes.plot(x, 100 * line["share"], color=colour, lw=1.8, label=name)
    axes.set_xlabel(wrapped(with_unit(chosen), 60))
    axes.set_ylabel(f"Runs {'above' if chosen['better'] == 'higher' else 'below'} (%)")
    axes.legend(title=heading(levels["label"]), title_fontsize=8.5)
    return figure


def scores_by_level(
    runs: pd.DataFrame, declaration: Mapping[str, Any], factor: str, response: str
) -> dict[str, pd.DataFrame]:
    """Per level of a factor, its scores: a row per setting of the other factors, a column per seed with all of them."""
    names = [f["name"] for f in declaration["factors"] if f["name"] in runs and f["name"] != factor]
    data = runs[runs["status"] == "done"].astype({factor: str, response: float})
    return {
        name: data[data[factor] == name]
        .pivot_table(index=names, columns="seed", values=response, aggfunc="first")
        .dropna(axis="columns")
        for name in present_levels(data.assign(factor=factor, level=data[factor]), _factor(declaration, factor))
    }


def strongest_pairs(runs: pd.DataFrame, declaration: Mapping[str, Any], response: str) -> list[tuple[str, str]]:
    """The pairs of crossed factors with the largest interactions, at most four; ValueError if none were crossed."""
    found = interactions(runs, declaration, response)
    if found.empty:
        raise ValueError("no two factors were crossed in these runs, so there is no interaction to draw")
    size = found.assign(size=found["mean"].abs()).groupby(["factor", "other_factor"])["size"].max()
    return [pair for pair, _ in size.sort_values(ascending=False).head(MOST_PANELS).items()]  # type: ignore[misc]


def _crossed(runs: pd.DataFrame, declaration: Mapping[str, Any], one: str, other: str, response: str) -> pd.DataFrame:
    """The cells of two factors, without levels that no run has together with a change of the other factor."""
    cells = crossed_cells(runs, declaration, one, other, response)
    firsts = {
        side: _factor(declaration, f)["levels"][0]["name"] for side, f in (("level", one), ("other_level", other))
    }
    together = cells[(cells["level"] != firsts["level"]) & (cells["other_level"] != firsts["other_level"])]
    for side, first in firsts.items():
        cells = cells[cells[side].isin([first, *together[side]])]
    return cells


def _grid(count: int) -> tuple[Figure, list[Any]]:
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else 0.68 * WIDTH, 0.3 + 2.9 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, list(panels)


def _factor(declaration: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = {factor["name"]: factor for factor in declaration["factors"]}
    if name not in found:
        raise ValueError(f"{name!r} is not a factor; allowed: {', '.join(found)}")
    return found[name]


def _cell_text(row: Any, by: float) -> str:
    half = (row.high - row.low) / 2 * by
    value = number(row.value * by, decimals(half) if half > 0 else None)
    if row.mean == 0 and not half > 0:
        return value
    return f"{value}\n{number(row.mean * by, decimals(half) if half > 0 else None, sign=True)}"
