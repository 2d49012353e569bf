"""Figures of forecasts of epidemics: how good they are by origin, horizon, history and noise, and how honest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ablations.report.evidence import Evidence
from ablations.report.figures.learning import mean_band, plain_ticks
from ablations.report.figures.theme import FAR, INK, MARKERS, MUTED, PALETTE, WIDTH, Drawing, Figure, themed
from ablations.report.numbers import scale
from ablations.statistics import baseline_runs

NETWORK = "the baseline network"
REFERENCES = {  # forecasts without a network whose course studies record, as figures name them
    "oracle": "oracle: true rates",
    "sir_fit": "fitted SIR model",
    "log_quadratic": "log-quadratic",
    "log_linear": "log-linear",
    "seasonal_naive": "last season",
    "flat_median": "flat median of the hubs",
    "persistence": "persistence",
}
BEFORE = "days before the peak"
COMPARTMENTS = {"susceptible": PALETTE[0], "infectious": PALETTE[1], "recovered": PALETTE[2], "dead": INK}


@themed
def peak_by_origin(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Errors of the forecast peak against the day of the forecast; `table` is that of `origin_table`."""
    step = str(table["step"].iloc[0])
    labels = {"time": f"Error of the peak {step} ({step}s)", "height": "Error of the peak's height (%)"}
    figure = Figure(figsize=(WIDTH, 3.4))
    panels = figure.subplots(1, len(labels))
    for axes, (of, label) in zip(panels, labels.items(), strict=True):
        mine = table[table["of"] == of]
        _lines(axes, mine, BEFORE)
        axes.invert_xaxis()
        axes.set_xlabel(f"{step.capitalize()}s before the peak")
        axes.set_ylabel(label)
        means = mine.groupby(["series", BEFORE])["y"].mean().groupby("series").max()
        axes.set_ylim(0, 1.05 * min(means.max(), FAR * means.get(NETWORK, np.inf)))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, handlelength=1.6)
    return figure


@themed
def score_by_horizon(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Weighted interval score against days ahead, over that of persistence; `table` is that of `horizon_table`."""
    figure, axes = _single()
    _lines(axes, table, "days ahead")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.6)
    axes.axhline(1, color=MUTED, lw=1, ls=":")
    axes.set_yscale("log")
    plain_ticks(axes)
    axes.set_xlabel(f"{table['step'].iloc[0].capitalize()}s ahead")
    axes.set_ylabel("Weighted interval score\nover that of persistence")
    return figure


@themed
def coverage(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """How often intervals hold what comes, against what they state; `table` is that of `coverage_table`."""
    figure, axes = _single((4.2, 3.6))
    axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=":")
    band = mean_band(table, "stated")
    axes.fill_between(band.index, band["low"], band["high"], color=PALETTE[0], alpha=0.2, lw=0)
    axes.plot(band.index, band["mean"], "o-", color=PALETTE[0], ms=4, lw=1.6)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set_xlabel("Stated coverage (%)")
    axes.set_ylabel("Share of forecasts inside (%)")
    return figure


@themed
def history_by_noise(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Error against days of history, a line per noise of the reports; `table` is that of `history_table`."""
    figure, axes = _single()
    for i, (noise, mine) in enumerate(table.groupby("noise")):
        band, colour = mean_band(mine, "history"), PALETTE[i % len(PALETTE)]
        errors = (band["mean"] - band["low"]).fillna(0)
        axes.errorbar(
            band.index, band["mean"], errors, color=colour, marker=MARKERS[i % 6], capsize=2, label=f"{noise:g}"
        )
    axes.set_xticks(sorted(table["history"].unique()))
    axes.set_xlabel("Days of history")
    axes.set_ylabel(f"{declaration['responses'][0]['label']} (%)")
    axes.legend(title="Noise", loc="best")
    return figure


@themed
def compartments(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """The course of an epidemic with its peak marked; `table` has day and a column per compartment."""
    figure, axes = _single()
    for name, colour in COMPARTMENTS.items():
        axes.plot(table["day"], 100 * table[name], color=colour, lw=1.8, ls="--" if name == "dead" else "-", label=name)
    peak = table.iloc[int(table["infectious"].argmax())]
    axes.plot(peak["day"], 100 * peak["infectious"], "o", color=COMPARTMENTS["infectious"], ms=7, mfc="none", mew=1.6)
    axes.axvline(peak["day"], color=MUTED, lw=1, ls=":")
    axes.set(xlim=(table["day"].min(), table["day"].max()), ylim=(0, 100))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("Day")
    axes.set_ylabel("Share of the population (%)")
    return figure


def origin_table(evidence: Evidence) -> pd.DataFrame:
    """Of the baseline's runs and of forecasts without a network: series, seed, days before the peak, y, step, and of.

    y is the error `of` the peak's "time", in steps of the series (`day` or `week`), or of its "height", in per cent.
    """
    frames = []
    for of, array, by in (("time", "peak_day_error_by_origin", 1), ("height", "peak_height_error_by_origin", 100)):
        if len(courses := _courses(evidence, array, BEFORE)):
            frames.append(courses.assign(y=by * courses["y"], of=of))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def horizon_table(evidence: Evidence) -> pd.DataFrame:
    """Series, seed, days ahead, y, step: the weighted interval score over that of persistence on the same tests."""
    table = _courses(evidence, "wis_by_ahead", "days ahead")
    if table.empty:
        return table
    naive = table[table["series"] == REFERENCES["persistence"]].set_index(["seed", "days ahead"])["y"]
    table["y"] /= naive.reindex(pd.MultiIndex.from_frame(table[["seed", "days ahead"]])).to_numpy()
    return table[table["series"] != REFERENCES["persistence"]]


def coverage_table(evidence: Evidence) -> pd.DataFrame:
    """Of the baseline's runs: seed, stated coverage and y, both in per cent."""
    frames = [
        pd.DataFrame(
            {"seed": seed, "stated": np.round(100 * arrays["nominal_coverage"], 1), "y": 100 * arrays["coverage"]}
        )
        for seed, arrays in _baseline_arrays(evidence, "nominal_coverage", "coverage")
        if "coverage" in arrays
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def history_table(evidence: Evidence) -> pd.DataFrame:
    """Of runs that change nothing but history and noise: both, seed and y, the primary response in per cent."""
    factors = {factor["name"]: factor["levels"][0]["name"] for factor in evidence.declaration["factors"]}
    runs = evidence.done
    if not {"history", "noise"} <= factors.keys() & set(runs):
        return pd.DataFrame()
    for name, level in factors.items():
        if name not in ("history", "noise") and name in runs:
            runs = runs[runs[name].astype(str) == level]
    y = runs[evidence.primary["name"]].astype(float) * scale(evidence.primary)
    return pd.DataFrame({"history": runs["history"].astype(int), "noise": runs["noise"].astype(float), "y": y})


def compartment_table(evidence: Evidence) -> pd.DataFrame:
    """The first test epidemic of the first baseline run: day and a column per compartment, as shares."""
    for _, arrays in _baseline_arrays(evidence, "day", *COMPARTMENTS):
        if set(COMPARTMENTS) <= set(arrays):
            return pd.DataFrame({"day": arrays["day"], **{name: arrays[name][0] for name in COMPARTMENTS}})
    return pd.DataFrame()


def draw_peak_by_origin(evidence: Evidence) -> Drawing | None:
    return _drawing(
        evidence,
        "peak_by_origin",
        origin_table(evidence),
        "How early the peak can be told",
        "Mean error of the forecast peak's time and height, by when the forecast is made, of the baseline network and "
        f"of forecasts without one, over {evidence.seeds} with 95 % t interval. Lines that leave a panel are far "
        "worse. Whoever does not know the rates cannot tell the peak far ahead, however clean the data.",
        "Lines of the errors of the peak's time and height that fall towards the peak.",
    )


def draw_score_by_horizon(evidence: Evidence) -> Drawing | None:
    return _drawing(
        evidence,
        "score_by_horizon",
        horizon_table(evidence),
        "Score by time ahead",
        f"Weighted interval score over that of persistence on the same tests, mean over {evidence.seeds} with 95 % t "
        "interval; below 1 is better than persistence. Forecasts without a network take their intervals from their own "
        "errors on the validation epidemics.",
        "Lines of the relative score against the time ahead.",
    )


def draw_coverage(evidence: Evidence) -> Drawing | None:
    return _drawing(
        evidence,
        "coverage",
        coverage_table(evidence),
        "Do intervals hold what they state?",
        "Share of forecasts whose truth lies inside the baseline network's central intervals, mean over "
        f"{evidence.seeds} with 95 % t interval. On the dotted line intervals are honest; below it they are too "
        "narrow.",
        "Actual against stated coverage, with the diagonal.",
    )


def draw_history_by_noise(evidence: Evidence) -> Drawing | None:
    table = history_table(evidence)
    several = not table.empty and table["history"].nunique() > 1 and table["noise"].nunique() > 1
    return _drawing(
        evidence,
        "history_by_noise",
        table if several else pd.DataFrame(),
        "History against noise",
        f"Error by days of history for each noise of the reports, mean over {evidence.seeds} with 95 % t interval. All "
        "points of the grid: `ablate run epidemic history=7,14,28 noise=0,0.1,0.3 --design factorial`.",
        "Error against history, a line per noise.",
    )


def draw_compartments(evidence: Evidence) -> Drawing | None:
    return _drawing(
        evidence,
        "compartments",
        compartment_table(evidence),
        "An epidemic of the study",
        "Susceptible, infectious, recovered and dead in one simulated test epidemic, before any noise of reports; the "
        "peak of infection is marked.",
        "Four curves over days; the infectious rise to the marked peak and fall.",
    )


FIGURES = {
    "peak_by_origin": (peak_by_origin, "origin_table"),
    "score_by_horizon": (score_by_horizon, "horizon_table"),
    "coverage": (coverage, "coverage_table"),
    "history_by_noise": (history_by_noise, "history_table"),
    "compartments": (compartments, "compartment_table"),
}


def _drawing(evidence: Evidence, name: str, table: pd.DataFrame, title: str, caption: str, alt: str) -> Drawing | None:
    if table.empty:
        return None
    draw, maker = FIGURES[name]
    code = f"figures.{name}(figures.{maker}(evidence), evidence.declaration)"
    return Drawing(f"{evidence.study}_{name}", title, caption, alt, partial(draw, table, evidence.declaration), code)


def _single(size: tuple[float, float] = (WIDTH, 3.2)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    return figure, figure.subplots()


def _lines(axes: Axes, table: pd.DataFrame, x: str) -> None:
    """A line per series with its interval, the network's in ink."""
    series: Sequence[str] = list(dict.fromkeys(table["series"]))
    colours = dict(zip(series, [INK, *PALETTE, MUTED], strict=False)) | {REFERENCES["persistence"]: MUTED}
    for name, marker in zip(series, ["", *MARKERS, ""], strict=False):
        band = mean_band(table[table["series"] == name], x)
        axes.fill_between(band.index, band["low"], band["high"], color=colours[name], alpha=0.18, lw=0)
        axes.plot(band.index, band["mean"], color=colours[name], lw=2.4 if name == NETWORK else 1.4, marker=marker,
                  ms=3.5, markevery=3, label=name)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _baseline_arrays(evidence: Evidence, *names: str) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
    """Of every baseline run: its seed, and the arrays of these names that it left."""
    runs = baseline_runs(evidence.done, evidence.declaration)
    for key, seed in zip(runs["key"], runs["seed"], strict=True):
        yield seed, evidence.predictions(key, names)


def _courses(evidence: Evidence, name: str, x: str) -> pd.DataFrame:
    """The array of that name of the baseline's runs, and of forecasts without a network: series, seed, x, y, step.

    x is `BEFORE`, or else days ahead.
    """
    names = {name: NETWORK} | {f"{name}_{reference}": label for reference, label in REFERENCES.items()}
    columns: dict[str, list[np.ndarray]] = {"series": [], "seed": [], x: [], "y": [], "step": []}
    for seed, arrays in _baseline_arrays(evidence, "before_peak", "step", *names):
        step = str(arrays.get("step", "day"))
        for column, label in names.items():
            if column in arrays:
                y = arrays[column].astype(float)
                places = -arrays["before_peak"] if x == BEFORE else 1 + np.arange(len(y))
                for values, part in zip(columns.values(), (label, seed, places, y, step), strict=True):
                    values.append(np.broadcast_to(part, y.shape))
    table = pd.DataFrame({name: np.concatenate(values) for name, values in columns.items() if values})
    order = {label: place for place, label in enumerate(names.values())}
    return (
        table.sort_values("series", key=lambda s: s.map(order), kind="stable", ignore_index=True)
        if len(table)
        else table
    )
