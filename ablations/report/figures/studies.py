"""Figures that a study asks for by name in its declaration, with the tables that they draw."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from ablations.report.evidence import Evidence
from ablations.report.figures.learning import lines_by_factor
from ablations.report.figures.theme import INK, MUTED, PALETTE, WIDTH, Drawing, Figure, themed
from ablations.report.numbers import number
from ablations.statistics import baseline_runs, one_factor_runs

FORECASTS = ("forecast", "forecast_50", "forecast_95")
INTERVALS = ("low_95", "high_95", "low_50", "high_50")


@themed
def forecasts(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Forecasts from before, at and after the peak of infection; `table` is that of `forecast_table`."""
    chosen = list(dict.fromkeys(table["title"]))
    figure = Figure(figsize=(WIDTH, 3.4))
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    origins = sorted(table["origin"].dropna().unique())
    colours = dict(zip(origins, itertools.cycle(PALETTE), strict=False))
    for axes, title in zip(panels, chosen, strict=True):
        mine = table[table["title"] == title]
        truth, observed = (mine[mine["kind"] == kind] for kind in ("truth", "observed"))
        axes.plot(truth["day"], truth["value"], color=INK, lw=1.4)
        axes.plot(observed["day"], observed["value"], ".", color=MUTED, ms=3.5, alpha=0.8)
        axes.axvline(0, color=MUTED, lw=1, ls=":")
        for origin, ahead in mine[mine["kind"] == "forecast"].groupby("origin"):
            days = ahead.groupby("day")[["value", *INTERVALS]].median().rename(columns={"value": "median"})
            for low, high in zip(INTERVALS[::2], INTERVALS[1::2], strict=True):
                axes.fill_between(days.index, days[low], days[high], color=colours[origin], alpha=0.16, lw=0)
            axes.plot(days.index, days["median"], color=colours[origin], lw=2.2)
            start = truth.loc[truth["day"] == origin, "value"]
            axes.plot([origin] * len(start), start, marker="|", color=colours[origin], ms=10, mew=2)
        axes.set_title(title)
        axes.set_xlabel("Days from the peak")
    panels[0].set_ylim(0, 1.6 * table.loc[table["kind"] != "forecast", "value"].max())
    is_share = table["value"].max() <= 1
    panels[0].set_ylabel("Infected, share of the population" if is_share else "Infected")
    handles = [
        Line2D([], [], color=INK, lw=1.4, label="truth"),
        Line2D([], [], ls="", marker=".", color=MUTED, label="observed"),
    ]
    handles += [Line2D([], [], color=colours[o], lw=2.2, label=_origin(o)) for o in origins]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2, handlelength=1.4)
    return figure


@themed
def shift_accuracy(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Test accuracy against the shift of the image, a line per level; `table` is that of `shift_table`."""
    data = one_factor_runs(table, declaration)
    data = data.assign(y=100 * data["accuracy"])
    return lines_by_factor(data, declaration, "shift", "Shift of the image (pixels)", "Test accuracy (%)")


def forecast_table(evidence: Evidence, panels: int = 3) -> pd.DataFrame:
    """The baseline's forecasts of the test epidemics with the smallest, the median and the largest error.

    Columns: title, kind (truth, observed, forecast), seed, origin, day (both relative to the peak), value, and bounds
    of the 95 % and the 50 % interval.
    """
    baseline = baseline_runs(evidence.done, evidence.declaration)
    found: dict[bytes, list[tuple[int, int, dict[str, np.ndarray], float]]] = {}
    for key, seed in zip(baseline["key"], baseline["seed"], strict=True):
        arrays = evidence.predictions(key, ("truth", "observed", "day", "peak_day", "origin", *FORECASTS))
        for i, truth in enumerate(arrays.get("truth", ())):
            ahead = _ahead(arrays, i)
            inside = (ahead >= 0) & (ahead < len(truth))
            miss = np.abs(arrays["forecast"][i] - truth[np.clip(ahead, 0, len(truth) - 1)])[inside].mean() / truth.max()
            found.setdefault(truth.tobytes(), []).append((seed, i, arrays, float(miss)))
    ranked = sorted(found.values(), key=lambda seen: np.mean([miss for *_, miss in seen]))
    places = dict.fromkeys(round(q * (len(ranked) - 1)) for q in np.linspace(0, 1, panels)) if ranked else {}
    titles = (
        ["Smallest error", "Median error", "Largest error"]
        if len(places) == 3
        else [f"Epidemic {p + 1}" for p in places]
    )
    frames = [_epidemic(ranked[place]).assign(title=title) for place, title in zip(places, titles, strict=True)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def shift_table(evidence: Evidence) -> pd.DataFrame:
    """Accuracy by shift of every done run, with the columns of `runs`."""
    columns: dict[str, list[Any]] = {"key": [], "shift": [], "accuracy": []}
    for key in one_factor_runs(evidence.done, evidence.declaration)["key"].unique():
        arrays = evidence.predictions(key, ("shift_accuracy", "shift_pixels"))
        if "shift_accuracy" in arrays:
            columns["key"] += [key] * len(arrays["shift_pixels"])
            columns["shift"].extend(arrays["shift_pixels"])
            columns["accuracy"].extend(arrays["shift_accuracy"])
    return pd.DataFrame(columns).merge(evidence.done.drop(columns="accuracy", errors="ignore"), on="key")


def _ahead(arrays: Mapping[str, np.ndarray], i: int) -> np.ndarray:
    """Positions in `day` that epidemic i's forecasts speak of, shape (origins, horizon)."""
    origin, horizon = arrays["origin"].astype(int), arrays["forecast"].shape[-1]
    return int(arrays["peak_day"][i] - arrays["day"][0]) + origin[:, None] + 1 + np.arange(horizon)


def _epidemic(seen: list[tuple[int, int, dict[str, np.ndarray], float]]) -> pd.DataFrame:
    """One epidemic in long form, with the forecasts of every seed that was tested on it."""
    _, i, arrays, _ = seen[0]
    day = arrays["day"] - arrays["peak_day"][i]
    near = (day >= -28) & (day <= arrays["origin"].max() + arrays["forecast"].shape[-1])
    frames = [
        pd.DataFrame({"kind": kind, "day": day[near], "value": arrays[kind][i][near]}) for kind in ("truth", "observed")
    ]
    for seed, k, theirs, _ in seen:
        for j, origin in enumerate(theirs["origin"]):
            ahead = origin + 1 + np.arange(theirs["forecast"].shape[-1])
            frame = {"kind": "forecast", "day": ahead, "value": theirs["forecast"][k, j], "origin": origin}
            for share in ("95", "50"):
                bounds = theirs.get(f"forecast_{share}", np.full((k + 1, j + 1, len(ahead), 2), np.nan))[k, j]
                frame |= {f"low_{share}": bounds[:, 0], f"high_{share}": bounds[:, 1]}
            frames.append(pd.DataFrame(frame | {"seed": seed}))
    return pd.concat(frames, ignore_index=True)


def _origin(days: float) -> str:
    return "from the peak" if days == 0 else f"from day {number(days, 0, sign=True)}"


def _forecast_spread(table: pd.DataFrame) -> str:
    bands = "" if table["low_95"].isna().all() else " Bands are its 50 and 95 % intervals."
    if table.groupby("title")["seed"].nunique().max() > 1:
        return f"Lines are medians over seeds.{bands.replace('its', 'median')}"
    return f"Each seed has its own test epidemics, so each line is the median forecast of one network.{bands}"


def draw_forecasts(evidence: Evidence) -> Drawing | None:
    """The figure `forecasts`, if the baseline's runs left forecasts."""
    table = forecast_table(evidence)
    if table.empty:
        return None
    return Drawing(
        f"{evidence.study}_forecasts",
        "Predictions around the peak of infection",
        "Forecasts of the baseline network for three test epidemics, chosen by their error, not by their looks. "
        f"Short bars mark the day each forecast was made. {_forecast_spread(table)}",
        "Three epidemics with their truth, observations, and forecasts made before, at and after the peak.",
        partial(forecasts, table, evidence.declaration),
        "figures.forecasts(figures.forecast_table(evidence), evidence.declaration)",
    )


def draw_shift_accuracy(evidence: Evidence) -> Drawing | None:
    """The figure `shift_accuracy`, if runs left their accuracy on shifted images."""
    table = shift_table(evidence)
    if table.empty:
        return None
    return Drawing(
        f"{evidence.study}_shift_accuracy",
        "Accuracy on shifted images",
        f"Test accuracy when test images are shifted: mean over {evidence.seeds} with 95 % t interval.",
        "Lines of test accuracy that fall with the shift, one panel per factor, a line per level.",
        partial(shift_accuracy, table, evidence.declaration),
        "figures.shift_accuracy(figures.shift_table(evidence), evidence.declaration)",
    )
