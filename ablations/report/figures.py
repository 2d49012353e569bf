"""Every figure of the report: a function of a table and the study's declaration that returns a matplotlib Figure."""

from __future__ import annotations

import functools
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation
from scipy import stats

from ablations.report.evidence import REFERENCES, Evidence
from ablations.report.numbers import decimals, heading, in_sentence, number, scale, unit_of_difference, with_unit
from ablations.statistics import ALPHA, mean_interval, one_factor_runs

INK, MUTED, GRID = "#1b2733", "#66727e", "#d9dfe5"  # the page replaces these by its own, light or dark
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"]  # Okabe and Ito's, for light and dark
MARKERS = ["o", "s", "^", "D", "v", "P"]
VERDICTS = {  # colour and marker: the same word never relies on colour alone
    "supported": ("#009e73", "o"),
    "contradicted": ("#d55e00", "X"),
    "equivalent": ("#0072b2", "s"),
    "undecided": (MUTED, "o"),
    "": (MUTED, "o"),
}
REFERENCE_CAPTION = " Dashed lines are forecasts without a network, averaged over the baseline's test sets."
WIDTH = 7.2  # inches: a page of a journal

THEME: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "recurve",
}
P = ParamSpec("P")


@dataclass(frozen=True)
class Drawing:
    """A figure with what stands below it, and what is said to those who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def save(self, folder: Path) -> list[Path]:
        """Write `<name>.png` and `<name>.svg`; the same figure gives the same bytes."""
        paths = [folder / f"{self.name}.png", folder / f"{self.name}.svg"]
        paths[0].write_bytes(self._render("png", {"Software": None}))
        paths[1].write_bytes(self._render("svg", {"Date": None, "Creator": None}))
        return paths

    def _render(self, kind: str, metadata: dict[str, None]) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(THEME):
            self.figure.savefig(buffer, format=kind, metadata=metadata, facecolor="white" if kind == "png" else "none")
        return buffer.getvalue()


@dataclass
class _Point:
    """A level in the figure of accuracy against parameters; `aside` moves it, in points, from others of its size."""

    x: float
    y: float
    low: float
    high: float
    colour: str
    marker: str
    size: float
    text: str
    aside: float = 0.0


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under the report's theme without changing that of the caller."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        theme: dict[Any, Any] = sns.axes_style("whitegrid") | THEME
        with mpl.rc_context(theme):
            return draw(*args, **kwargs)

    return wrapper


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
            ticks.append((y, row.level, _interval_text(row, by)))
        y += 1.3
    axes.axvline(0, color=INK, lw=1)
    axes.set_ylim(y - 0.5, -0.6)
    axes.margins(x=0.06)
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
    axes.set_xlabel(_wrapped(measured[0].upper() + measured[1:], 70))
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
    handles.append(Patch(color=GRID, alpha=0.75, label="too small to matter"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handlelength=1.6)
    return figure


@themed
def levels(runs: pd.DataFrame, declaration: Mapping[str, Any], response: str | None = None) -> Figure:
    """A response (the primary one by default) per level: every seed, their mean and its 95 % t interval."""
    chosen = _response(declaration, response)
    done = runs[np.isfinite(runs[chosen["name"]].astype(float))]
    data = one_factor_runs(done, declaration)
    factors = [f for f in declaration["factors"] if data.loc[data["factor"] == f["name"], "level"].nunique() > 1]
    factors = factors or declaration["factors"][:1]
    present = {f["name"]: _present(data, f) for f in factors}
    figure = Figure(figsize=(WIDTH, 3.6))
    panels = figure.subplots(
        1, len(factors), sharey=True, squeeze=False, width_ratios=[len(v) for v in present.values()]
    )[0]
    for axes, factor in zip(panels, factors, strict=True):
        _seeds_and_means(axes, data[data["factor"] == factor["name"]], present[factor["name"]], chosen)
        axes.set_title(_wrapped(heading(factor["label"]), 1 + 6 * len(present[factor["name"]])))
    if chosen is declaration["responses"][0]:
        _reference_lines(panels, done, chosen)
    panels[0].set_ylabel(_wrapped(with_unit(chosen), 38))
    return figure


@themed
def learning_curves(curves: pd.DataFrame, declaration: Mapping[str, Any], measure: str | None = None) -> Figure:
    """A measure of the learning curve by epoch, a line per level: mean over seeds with 95 % t interval.

    `measure` is `validation_accuracy` where recorded, else `validation_loss`. A line ends where its first run does.
    """
    measure = measure or _curve_measure(curves)
    data = one_factor_runs(curves, declaration)
    by, label = (
        (100, "Validation accuracy (%)") if "accuracy" in measure else (1, measure.replace("_", " ").capitalize())
    )
    return _lines_by_factor(data.assign(y=data[measure] * by), declaration, "epoch", "Epoch", label)


@themed
def accuracy_against_parameters(
    runs: pd.DataFrame, declaration: Mapping[str, Any], parameters: str = "parameters"
) -> Figure:
    """The primary response against the number of parameters, a point per level with its 95 % t interval."""
    response = declaration["responses"][0]
    data = one_factor_runs(runs, declaration)
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.add_subplot()
    bounds = _bounds(runs[response["name"]] * scale(response), response["unit"])
    points: list[_Point] = []
    for k, factor in enumerate(declaration["factors"]):
        for level in factor["levels"]:
            mine = data[(data["factor"] == factor["name"]) & (data["level"] == level["name"])]
            is_baseline = level is factor["levels"][0]
            if len(mine) and not (is_baseline and points):
                look = (INK, "*", 13, "baseline") if is_baseline else (PALETTE[k % 6], MARKERS[k % 6], 7, level["name"])
                y, low, high = (v * scale(response) for v in mean_interval(mine[response["name"]]))
                points.append(_Point(float(mine[parameters].mean()), y, *np.clip((low, high), *bounds), *look))
    for x in dict.fromkeys(point.x for point in points):
        together = [point for point in points if point.x == x]
        for k, point in enumerate(together):
            point.aside = 10.0 * (k - (len(together) - 1) / 2)
            beside = axes.transData + ScaledTranslation(point.aside / 72, 0, figure.dpi_scale_trans)
            axes.plot([x, x], [point.low, point.high], color=point.colour, lw=1.6, alpha=0.7, transform=beside)
            axes.plot(x, point.y, point.marker, color=point.colour, ms=point.size, transform=beside)
    axes.update_datalim([(p.x, y) for p in points for y in (p.y, p.low, p.high) if math.isfinite(y)])
    axes.autoscale_view()
    handles = [
        Line2D([], [], ls="", marker=MARKERS[k % 6], color=PALETTE[k % 6], label=heading(factor["label"]))
        for k, factor in enumerate(declaration["factors"])
        if (data["factor"] == factor["name"]).any()
    ]
    axes.set_xscale("log")
    axes.margins(x=0.14, y=0.12)
    _plain_log_ticks(axes)
    beside_others = any(point.aside for point in points)
    axes.set_xlabel("Parameters (levels of equal size stand side by side)" if beside_others else "Parameters")
    axes.set_ylabel(_wrapped(with_unit(response), 44))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    _place_labels(figure, axes, points)
    return figure


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
            days = ahead.groupby("day")["value"].agg(["median", "min", "max"])
            if ahead["seed"].nunique() > 1:
                axes.fill_between(days.index, days["min"], days["max"], color=colours[origin], alpha=0.22, lw=0)
            axes.plot(days.index, days["median"], color=colours[origin], lw=2.2)
            start = truth.loc[truth["day"] == origin, "value"]
            axes.plot([origin] * len(start), start, marker="|", color=colours[origin], ms=10, mew=2)
        axes.set_title(title)
        axes.set_xlabel("Days from the peak")
        axes.set_ylim(bottom=0)
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
    return _lines_by_factor(data, declaration, "shift", "Shift of the image (pixels)", "Test accuracy (%)")


def forecast_table(evidence: Evidence, panels: int = 3) -> pd.DataFrame:
    """The baseline's forecasts of the test epidemics with the smallest, the median and the largest error.

    Columns: title, kind (truth, observed, forecast), seed, origin, day (both relative to the peak), value.
    """
    baseline = one_factor_runs(evidence.done, evidence.declaration)
    first = {f["name"]: f["levels"][0]["name"] for f in evidence.declaration["factors"]}
    baseline = baseline[baseline["level"] == baseline["factor"].map(first)].drop_duplicates("key")
    found: dict[bytes, list[tuple[int, int, dict[str, np.ndarray], float]]] = {}
    for key, seed in zip(baseline["key"], baseline["seed"], strict=True):
        arrays = evidence.predictions[key]
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
    frames = [
        pd.DataFrame({"key": key, "shift": arrays["shift_pixels"], "accuracy": arrays["shift_accuracy"]})
        for key, arrays in evidence.predictions.items()
        if "shift_accuracy" in arrays
    ]
    return (
        pd.concat(frames).merge(evidence.done.drop(columns="accuracy", errors="ignore"), on="key")
        if frames
        else pd.DataFrame()
    )


def draw(evidence: Evidence) -> list[Drawing]:
    """All figures that the evidence allows; each is named `<study>_<figure>`."""
    study, declaration, done, primary = evidence.study, evidence.declaration, evidence.done, evidence.primary
    if done.empty or primary["name"] not in done:
        return []
    seeds = f"{done['seed'].nunique()} seed{'s' if done['seed'].nunique() > 1 else ''}"
    label, drawings = in_sentence(primary["label"]), []

    def add(name: str, title: str, caption: str, alt: str, figure: Figure) -> None:
        drawings.append(Drawing(f"{study}_{name}", title, caption, alt, figure))

    if len(evidence.effects) and (evidence.effects["n"] > 0).any():
        add(
            "forest",
            "What each level changes",
            f"Difference to the baseline in {label}, paired by seed ({seeds}), with its 95 % t interval. Grey bands "
            "span the margin stated before the run: differences inside it would not matter.",
            _forest_alt(evidence),
            forest(evidence.effects, declaration),
        )
    add(
        "levels",
        "Every seed",
        f"{heading(primary['label'])} of each level: small dots are seeds, thin lines join runs of the same seed, "
        "large dots are means with 95 % t intervals. Intervals of single levels may overlap where the paired "
        f"difference is clear: seeds share data.{REFERENCE_CAPTION if evidence.references else ''}",
        f"Dot plots of {label} by level, one panel per factor.",
        levels(done, declaration),
    )
    if len(evidence.curves):
        measure = _curve_measure(evidence.curves).replace("_", " ")
        add(
            "learning_curves",
            "Learning",
            f"{measure.capitalize()} by epoch: mean over {seeds} with 95 % t interval. A line ends where its first run "
            "does.",
            f"Learning curves of {measure}, one panel per factor, a line per level.",
            learning_curves(evidence.curves, declaration),
        )
    if "parameters" in done:
        add(
            "parameters",
            f"{heading(primary['label'])} against size",
            f"Mean of {label} with its 95 % t interval against the number of parameters (log scale). Levels "
            "of equal size stand side by side.",
            f"Scatter plot of {label} against parameters, a point per level.",
            accuracy_against_parameters(done, declaration),
        )
    if "forecasts" in declaration["figures"] and len(table := forecast_table(evidence)):
        add(
            "forecasts",
            "Predictions around the peak of infection",
            "Forecasts of the baseline network for three test epidemics, chosen by their error, not by their looks. "
            f"Short bars mark the day each forecast was made. {_forecast_spread(table)}",
            "Three epidemics with their truth, observations, and forecasts made before, at and after the peak.",
            forecasts(table, declaration),
        )
    if "shift_accuracy" in declaration["figures"] and len(table := shift_table(evidence)):
        add(
            "shift_accuracy",
            "Accuracy on shifted images",
            f"Test accuracy when test images are shifted: mean over {seeds} with 95 % t interval.",
            "Lines of test accuracy that fall with the shift, one panel per factor, a line per level.",
            shift_accuracy(table, declaration),
        )
    return drawings


def _response(declaration: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    known = {response["name"]: response for response in declaration["responses"]}
    if name is not None and name not in known:
        raise ValueError(f"{name!r} is not a response of {declaration['name']}; allowed: {', '.join(known)}")
    return known[name] if name else declaration["responses"][0]


def _present(data: pd.DataFrame, factor: Mapping[str, Any]) -> list[str]:
    seen = set(data.loc[data["factor"] == factor["name"], "level"])
    return [level["name"] for level in factor["levels"] if level["name"] in seen]


def _colours(factor: Mapping[str, Any]) -> dict[str, str]:
    """The baseline is ink; other levels keep their colour in every figure."""
    return dict(zip([level["name"] for level in factor["levels"]], [INK, *PALETTE * 4], strict=False))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, max(width, 12)))


def _interval_text(row: Any, by: float) -> str:
    if not math.isfinite(row.low):
        return f"{number(row.mean * by, sign=True)}  (n = {row.n})"
    digits = decimals((row.high - row.low) / 2 * by)
    mean, low, high = (number(x * by, digits, sign=True) for x in (row.mean, row.low, row.high))
    return f"{mean}  [{low}, {high}]"


def _seeds_and_means(axes: Axes, data: pd.DataFrame, names: list[str], response: Mapping[str, Any]) -> None:
    data = data.assign(y=data[response["name"]].astype(float) * scale(response), x=data["level"].map(names.index))
    for _, run in data.sort_values("x").groupby("seed"):
        axes.plot(run["x"] - 0.16, run["y"], color=MUTED, lw=0.6, alpha=0.35, zorder=1)
    sns.scatterplot(data=data.assign(x=data["x"] - 0.16), x="x", y="y", ax=axes, s=16, color=MUTED, alpha=0.7, lw=0)
    bounds = _bounds(data["y"], response["unit"])
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
    styles = dict(zip(means, ("--", "-.", ":"), strict=False))
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
        label_at = max(place, label_at + edge)
        panels[-1].annotate(
            label, (1.0, label_at), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8, color=PALETTE[1],
        )  # fmt: skip


def _bounds(values: pd.Series, unit: str) -> tuple[float, float]:
    """Where values can lie, as far as the data tell: not below 0 if none is, nor above 100 % if none is."""
    return 0.0 if values.min() >= 0 else -math.inf, 100.0 if unit == "%" and values.max() <= 100 else math.inf


def _curve_measure(curves: pd.DataFrame) -> str:
    recorded = "validation_accuracy" in curves and curves["validation_accuracy"].notna().any()
    return "validation_accuracy" if recorded else "validation_loss"


def _lines_by_factor(data: pd.DataFrame, declaration: Mapping[str, Any], x: str, x_label: str, y_label: str) -> Figure:
    """One panel per factor with several levels: mean of the column `y` over seeds by `x`, with 95 % t intervals."""
    factors = [f for f in declaration["factors"] if len(_present(data, f)) > 1] or declaration["factors"][:1]
    columns = min(len(factors), 2 if len(factors) != 3 else 3)
    rows = math.ceil(len(factors) / columns)
    figure = Figure(figsize=(WIDTH, 0.4 + 2.6 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    means, bounds = [], _bounds(data["y"], "%" if "%" in y_label else "")
    for axes, factor in zip(panels, factors, strict=False):
        colours = _colours(factor)
        for name in _present(data, factor):
            mine = data[(data["factor"] == factor["name"]) & (data["level"] == name)]
            line = _mean_band(mine, x)
            line[["low", "high"]] = line[["low", "high"]].clip(*bounds)
            means.append(line["mean"])
            axes.fill_between(line.index, line["low"], line["high"], color=colours[name], alpha=0.18, lw=0)
            axes.plot(line.index, line["mean"], color=colours[name], lw=1.8, label=name)
        axes.set_title(heading(factor["label"]))
        axes.legend(loc="best", handlelength=1.2, borderaxespad=0.2)
    for axes in panels[len(factors) :]:
        axes.set_visible(False)
    spread = pd.concat(means)
    if spread.min() > 0 and spread.max() > 20 * spread.min():
        panels[0].set_yscale("log")
    panels[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid = panels.reshape(rows, columns)
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label)
    for axes in grid[-1]:
        axes.set_xlabel(x_label if columns < 3 else _wrapped(x_label, 24))
    return figure


def _mean_band(data: pd.DataFrame, x: str) -> pd.DataFrame:
    grouped = data[np.isfinite(data["y"])].groupby(x)["y"].agg(["mean", "std", "count"])
    grouped = grouped[grouped["count"] == grouped["count"].max()]
    n = grouped["count"]
    half = stats.t.ppf(1 - ALPHA / 2, np.maximum(n - 1, 1)) * grouped["std"] / np.sqrt(n)
    return grouped.assign(low=grouped["mean"] - half, high=grouped["mean"] + half)


def _plain_log_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    steps = [m * 10**e for e in range(0, 10) for m in (1, 2, 5)]
    inside = [t for t in steps if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _place_labels(figure: Figure, axes: Axes, points: list[_Point]) -> None:
    """Write each label beside its point, at the first of eight places that meets no other label or point."""
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
            if not any(box.overlaps(other) for other in taken) or (dx, dy) == places[-1]:
                taken.append(box)
                break
            note.remove()


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
            frames.append(pd.DataFrame(frame | {"seed": seed}))
    return pd.concat(frames, ignore_index=True)


def _origin(days: float) -> str:
    return "from the peak" if days == 0 else f"from day {number(days, 0, sign=True)}"


def _forecast_spread(table: pd.DataFrame) -> str:
    if table.groupby("title")["seed"].nunique().max() > 1:
        return "Lines are medians over seeds, bands their smallest to largest forecast."
    return "Each seed has its own test epidemics, so each line is the forecast of one trained network."


def _forest_alt(evidence: Evidence) -> str:
    by = scale(evidence.primary)
    rows = evidence.effects[(evidence.effects["response"] == evidence.primary["name"]) & (evidence.effects["n"] > 0)]
    items = [f"{row.factor} {row.level} {_interval_text(row, by)} {row.verdict}".strip() for row in rows.itertuples()]
    return f"Forest plot of differences in {in_sentence(evidence.primary['label'])}: {'; '.join(items)}."
