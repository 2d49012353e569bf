"""How runs learn: curves with bands, and when they reach the baseline's target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy import stats

from ablations.report.evidence import curve_measure
from ablations.report.figures.theme import (
    WIDTH,
    Figure,
    bounds_of,
    level_colours,
    level_lines,
    present_levels,
    themed,
    wrapped,
)
from ablations.report.numbers import heading
from ablations.statistics import ALPHA, one_factor_runs, share_reached

MOST_IN_A_COLUMN = 5  # levels of a legend
FEW_PLACES = 3  # of a line, that are dots too: a single one is nothing else
WIDE = 10  # from the smallest to the largest mean: beyond, an axis is logarithmic


@themed
def learning_curves(curves: pd.DataFrame, declaration: Mapping[str, Any], measure: str | None = None) -> Figure:
    """A measure of the learning curve by epoch, a line per level: mean over seeds with 95 % t interval.

    `measure` is `validation_accuracy` where recorded, else `validation_loss`. A line ends where its first run does.
    """
    measure = measure or curve_measure(curves)[0]
    factors = [factor["name"] for factor in declaration["factors"] if factor["name"] in curves]
    data = one_factor_runs(curves[[*factors, "epoch", measure]], declaration)
    by, label = (
        (100, "Validation accuracy (%)") if "accuracy" in measure else (1, measure.replace("_", " ").capitalize())
    )
    limit = 100.0 if "accuracy" in measure else 0.0
    return lines_by_factor(data.assign(y=data[measure] * by), declaration, "epoch", "Epoch", label, limit)


@themed
def targets(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Share of runs that have reached the baseline's target, by epoch: Kaplan-Meier, 95 % intervals, a line per level.

    `runs` has the columns `status`, `epochs_to_target` (infinite for a miss) and `epochs_watched`; runs that diverged
    never arrive.
    """
    runs = runs[runs["epochs_to_target"].notna()]
    longest = float(runs["epochs_watched"].max())
    watched = runs["epochs_watched"].where(runs["status"] != "diverged", longest).fillna(longest)
    data = one_factor_runs(runs.assign(epochs_watched=watched), declaration)
    factors, panels, figure = panels_by_factor(data, declaration)
    for axes, factor in zip(panels, factors, strict=False):
        colours = level_colours(factor)
        for name in present_levels(data, factor):
            mine = data[(data["factor"] == factor["name"]) & (data["level"] == name)]
            line = share_reached(mine["epochs_to_target"], mine["epochs_watched"])
            end = pd.DataFrame([line.iloc[-1].to_dict() | {"time": longest}])
            line = pd.concat([line, end], ignore_index=True)
            steps = {"step": "post", "color": colours[name]}
            axes.fill_between(line["time"], 100 * line["low"], 100 * line["high"], alpha=0.13, lw=0, **steps)
            axes.step(line["time"], 100 * line["share"], where="post", color=colours[name], lw=1.8, label=name)
        axes.set_title(wrapped(heading(factor["label"]), 44 if columns_of(len(factors)) < 3 else 24))
        legend_of_levels(axes)
        axes.set_ylim(-3, 103)
    label_panels(panels, len(factors), "Epoch", "Runs at the target (%)")
    return figure


def panels_by_factor(
    data: pd.DataFrame, declaration: Mapping[str, Any]
) -> tuple[list[Mapping[str, Any]], np.ndarray, Figure]:
    """The factors with several levels, an array of panels for them, and the figure; spare panels are hidden."""
    factors = [f for f in declaration["factors"] if len(present_levels(data, f)) > 1] or declaration["factors"][:1]
    columns = columns_of(len(factors))
    rows = math.ceil(len(factors) / columns)
    figure = Figure(figsize=(WIDTH, 0.4 + (2.6 if columns < 3 else 1.9) * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.ravel()[len(factors) :]:
        axes.set_visible(False)
    return factors, panels.ravel(), figure


def columns_of(panels: int) -> int:
    """So that many panels still fit a page."""
    return min(panels, 2 if panels in (2, 4) else 3)


def legend_of_levels(axes: Axes) -> None:
    """Inside the panel, where it hides least; many levels stand in two columns of smaller letters."""
    is_long = len(axes.get_legend_handles_labels()[0]) > MOST_IN_A_COLUMN
    size = {"fontsize": 6.5, "columnspacing": 0.8} if is_long else {}
    behind = {"frameon": True, "facecolor": "#ffffff", "edgecolor": "none", "framealpha": 0.7}
    axes.legend(loc="best", handlelength=1.4, borderaxespad=0.2, labelspacing=0.3, ncols=1 + is_long, **size, **behind)


def label_panels(panels: np.ndarray, factors: int, x_label: str, y_label: str) -> None:
    """Write axis labels at the left and below, once."""
    columns = columns_of(factors)
    grid = panels.reshape(-1, columns)
    panels[0].xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label if columns < 3 else wrapped(y_label, 26))
    for column in grid.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel(x_label if columns < 3 else wrapped(x_label, 24))


def lines_by_factor(
    data: pd.DataFrame,
    declaration: Mapping[str, Any],
    x: str,
    x_label: str,
    y_label: str,
    limit: float | None = 0.0,
) -> Figure:
    """One panel per factor with several levels: mean of the column `y` over seeds by `x`, with 95 % t intervals.

    Where the means' distances to `limit` (0, or 100 of an accuracy) span more than a factor of 10, the axis is
    logarithmic in them, and so are means and intervals: beside a slow level, others can still be told apart.
    """
    factors, panels, figure = panels_by_factor(data, declaration)
    bounds = bounds_of(data["y"], "%" if "%" in y_label else "")
    means = data[np.isfinite(data["y"])].groupby(["factor", "level", x], observed=True)["y"].mean()
    side = -1 if limit else 1  # of the limit on which values lie
    distances, of_means = (side * (values - (limit or 0)) for values in (data["y"], means))
    logarithmic = limit is not None and distances.min() > 0 and of_means.max() > WIDE * of_means.min()
    for axes, factor in zip(panels, factors, strict=False):
        colours, styles = level_colours(factor), level_lines(factor)
        for name in present_levels(data, factor):
            mine = data[(data["factor"] == factor["name"]) & (data["level"] == name)]
            if logarithmic:
                line = mean_band(mine.assign(y=side * np.log(distances[mine.index])), x)
                line = (limit or 0) + side * (side * line).apply(np.exp)
            else:
                line = mean_band(mine, x)
            line[["low", "high"]] = line[["low", "high"]].clip(*bounds)
            axes.fill_between(line.index, line["low"], line["high"], color=colours[name], alpha=0.18, lw=0)
            dot = "o" if len(line) <= FEW_PLACES else ""
            style = {"color": colours[name], "ls": styles[name], "marker": dot, "ms": 4}
            axes.plot(line.index, line["mean"], lw=1.8, label=name, **style)
        axes.set_title(wrapped(heading(factor["label"]), 44 if columns_of(len(factors)) < 3 else 24))
        legend_of_levels(axes)
    if logarithmic and limit == 0:
        panels[0].set_yscale("log")
        plain_ticks(panels[0])
    elif logarithmic and limit:
        logarithmic_below(panels[0], limit)
    label_panels(panels, len(factors), x_label, y_label)
    return figure


def plain_ticks(axes: Axes) -> None:
    """Of a logarithmic axis, at 1, 2 and 5 times powers of ten, as people write them."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def logarithmic_below(axes: Axes, limit: float) -> None:
    """An axis whose distances to `limit` are logarithmic, with ticks at 1, 2 and 5 times powers of ten below it."""
    axes.set_yscale("function", functions=(lambda y: -np.log(limit - y), lambda z: limit - np.exp(-z)))
    low, high = axes.get_ylim()
    ticks = limit - np.asarray(LogLocator(subs=(1, 2, 5)).tick_values(limit - high, limit - low))
    axes.set_yticks(ticks[(ticks >= low) & (ticks <= high)])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def mean_band(data: pd.DataFrame, x: str) -> pd.DataFrame:
    grouped = data[np.isfinite(data["y"])].groupby(x)["y"].agg(["mean", "std", "count"])
    grouped = grouped[grouped["count"] == grouped["count"].max()]
    n = grouped["count"]
    half = stats.t.ppf(1 - ALPHA / 2, np.maximum(n - 1, 1)) * grouped["std"] / np.sqrt(n)
    return grouped.assign(low=grouped["mean"] - half, high=grouped["mean"] + half)
