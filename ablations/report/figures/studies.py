"""Figures that a study asks for by name in its declaration, with the tables that they draw."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ablations.report.evidence import Evidence
from ablations.report.figures.learning import lines_by_factor
from ablations.report.figures.theme import INK, MUTED, PALETTE, WIDTH, Drawing, Figure, themed, wrapped
from ablations.report.numbers import number
from ablations.statistics import baseline_runs, one_factor_runs

FORECASTS = ("forecast", "forecast_50", "forecast_95")
ROW_LETTERS = 18  # beside a panel of `forecasts`
HEADROOM = 1.8  # times the peak: a band that reaches higher is cut
INTERVALS = ("low_95", "high_95", "low_50", "high_50")


@themed
def forecasts(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Forecasts from before, at and after the peak: an epidemic per row, a panel per origin.

    `table` is that of `forecast_table`. Dots are the reports known on the day of the forecast.
    """
    chosen, origins = list(dict.fromkeys(table["title"])), sorted(table["origin"].dropna().unique())
    step, is_share = str(table["step"].iloc[0]), table["value"].max() <= 1
    by = 100 if is_share else 1
    figure = Figure(figsize=(WIDTH, 0.9 + 1.5 * len(chosen)))
    grid = figure.subplots(len(chosen), len(origins), sharex=True, sharey="row", squeeze=False)
    for row, title in zip(grid, chosen, strict=True):
        mine = table[table["title"] == title]
        truth, observed = (mine[mine["kind"] == kind] for kind in ("truth", "observed"))
        for axes, origin in zip(row, origins, strict=True):
            known, ahead = observed[observed["day"] <= origin], mine[mine["origin"] == origin]
            days = ahead.groupby("day")[["value", *INTERVALS]].median()
            for low, high, alpha in ((*INTERVALS[:2], 0.2), (*INTERVALS[2:], 0.35)):
                axes.fill_between(days.index, by * days[low], by * days[high], color=PALETTE[0], alpha=alpha, lw=0)
            axes.axvline(0, color=MUTED, lw=0.9, ls=":")
            axes.plot(truth["day"], by * truth["value"], color=INK, lw=1.1)
            axes.plot(known["day"], by * known["value"], ".", color=MUTED, ms=3.5)
            axes.plot(days.index, by * days["value"], color=PALETTE[0], lw=2)
        row[0].set_ylim(0, by * HEADROOM * mine.loc[mine["kind"] != "forecast", "value"].max())
        lines = [wrapped(line, ROW_LETTERS) for line in title.split("\n")]
        row[0].set_ylabel("\n".join(lines), fontsize=8.5)
        row[0].yaxis.set_major_locator(MaxNLocator(4))
    for axes, origin in zip(grid[0], origins, strict=True):
        axes.set_title(_from(origin, step))
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel(f"{step.capitalize()}s from the peak", fontsize=9.5)
    figure.supylabel("Infected (% of the population)" if is_share else "Reported", fontsize=9.5)
    handles: list[Artist] = [
        Line2D([], [], color=INK, lw=1.1, label="truth"),
        Line2D([], [], ls="", marker=".", color=MUTED, label="known reports"),
        Line2D([], [], color=PALETTE[0], lw=2, label="median forecast"),
    ]
    if table["low_95"].notna().any():
        bands = (("50 % interval", 0.5), ("95 % interval", 0.2))
        handles += [Patch(color=PALETTE[0], alpha=alpha, lw=0, label=label) for label, alpha in bands]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handlelength=1.4)
    return figure


@themed
def shift_accuracy(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Test accuracy against the shift of the image, a line per level; `table` is that of `shift_table`."""
    data = one_factor_runs(table, declaration)
    data = data.assign(y=100 * data["accuracy"])
    return lines_by_factor(data, declaration, "shift", "Shift of the image (pixels)", "Test accuracy (%)", limit=None)


def forecast_table(evidence: Evidence, panels: int = 3) -> pd.DataFrame:
    """The baseline's forecasts of the test epidemics with the smallest, the median and the largest error.

    Columns: title, kind (truth, observed, forecast), seed, origin, day (both relative to the peak, in steps of the
    series, which are days or weeks), value, bounds of the 95 % and the 50 % interval, and step.
    """
    baseline = baseline_runs(evidence.done, evidence.declaration)
    names = ("truth", "observed", "day", "peak_day", "origin", "step", "epidemic", *FORECASTS)
    found: dict[bytes, list[tuple[int, int, dict[str, np.ndarray], float]]] = {}
    for key, seed in zip(baseline["key"], baseline["seed"], strict=True):
        arrays = evidence.predictions(key, names)
        for i, truth in enumerate(arrays.get("truth", ())):
            ahead = _ahead(arrays, i)
            inside = (ahead >= 0) & (ahead < len(truth))
            miss = np.abs(arrays["forecast"][i] - truth[np.clip(ahead, 0, len(truth) - 1)])[inside].mean() / truth.max()
            found.setdefault(truth.tobytes(), []).append((seed, i, arrays, float(miss)))
    ranked = sorted(found.values(), key=lambda seen: np.mean([miss for *_, miss in seen]))
    places = dict.fromkeys(round(q * (len(ranked) - 1)) for q in np.linspace(0, 1, panels)) if ranked else {}
    titles = [f"Epidemic {p + 1}" for p in places]
    if len(places) == 3:
        titles = ["Smallest error", "Median error", "Largest error"]
    for k, place in enumerate(places):
        _, i, arrays, _ = ranked[place][0]
        if "epidemic" in arrays:
            titles[k] = f"{arrays['epidemic'][i]}" if len(places) != 3 else f"{titles[k]}\n{arrays['epidemic'][i]}"
    step = str(ranked[0][0][2].get("step", "day")) if ranked else ""
    frames = [_epidemic(ranked[place]).assign(title=title) for place, title in zip(places, titles, strict=True)]
    return pd.concat(frames, ignore_index=True).assign(step=step) if frames else pd.DataFrame()


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


def _from(origin: float, step: str) -> str:
    if origin == 0:
        return "At the peak"
    return f"{number(abs(origin), 0)} {step}{'' if abs(origin) == 1 else 's'} {'before' if origin < 0 else 'after'}"


def _chosen(table: pd.DataFrame) -> str:
    shown = table["title"].nunique()
    return "three test epidemics, chosen by their error, not by their looks" if shown == 3 else "all test epidemics"


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
        f"Forecasts of the baseline network for {_chosen(table)}, from "
        f"before, at and after the peak of infection (dotted); bands that reach beyond the panel "
        f"are cut. {_forecast_spread(table)}",
        "Small panels, a row per epidemic and a column per origin: truth, the reports known then, and the "
        "median forecast with its intervals.",
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
