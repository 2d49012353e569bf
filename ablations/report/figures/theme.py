"""The look of every figure: colours safe for the colour-blind, one theme, and how a figure is saved."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG

from ablations.report.numbers import decimals, number

INK, MUTED, GRID = "#1b2733", "#66727e", "#d9dfe5"  # the page replaces these by its own, light or dark
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"]  # Okabe and Ito's, for light and dark
LINES = ["-", "--", ":", "-."]
MARKERS = ["o", "s", "^", "D", "v", "P"]
VERDICTS = {  # colour and marker: the same word never relies on colour alone
    "supported": ("#009e73", "o"),
    "contradicted": ("#d55e00", "X"),
    "equivalent": ("#0072b2", "s"),
    "undecided": (MUTED, "o"),
    "better": ("#009e73", "o"),  # these two and "identical" of two runs folders
    "worse": ("#d55e00", "X"),
    "identical": ("#0072b2", "s"),
    "": (MUTED, "o"),
}
WIDTH = 7.2  # inches: a page of a journal
PAGE, LEAST_LINE = 9.6, 0.14  # inches: a figure that prints on one page, and a line that can still be read
FILE_DPI, SHOWN_DPI = 150, 100  # of files; of a notebook, which shows as many pixels smaller
FAR = 2.5  # times the upper quartile of all rows: beyond, a row would squeeze the others

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
    "figure.dpi": SHOWN_DPI,
    "savefig.dpi": FILE_DPI,
    "svg.hashsalt": "recurve",
}
P = ParamSpec("P")
F = TypeVar("F", bound=mpl.figure.Figure)


class Figure(mpl.figure.Figure):
    """A matplotlib figure that a notebook shows as the report saves it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches() * SHOWN_DPI
        return rendered(self, "png"), {"width": round(width), "height": round(height)}


@dataclass(frozen=True)
class Drawing:
    """A figure with what stands below it, and what is said to those who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], mpl.figure.Figure]  # when it is first asked for, since drawing takes most of a report's time
    code: str  # the call that draws it, for the notebook

    @functools.cached_property
    def figure(self) -> mpl.figure.Figure:
        return self.draw()

    def save(self, folder: Path) -> list[Path]:
        """Write `<name>.png` and `<name>.svg`; the same figure gives the same bytes."""
        paths = [folder / f"{self.name}.png", folder / f"{self.name}.svg"]
        paths[0].write_bytes(rendered(self.figure, "png"))
        self.figure.set_layout_engine("none")  # as laid out now: that takes as long as drawing
        paths[1].write_bytes(rendered(self.figure, "svg"))
        return paths


def rendered(figure: mpl.figure.Figure, kind: Literal["png", "svg"]) -> bytes:
    """The figure as a file, by its canvas: `savefig` would draw it twice."""
    buffer = io.BytesIO()
    with mpl.rc_context(THEME):
        figure.set_dpi(FILE_DPI)
        figure.set_facecolor("white" if kind == "png" else "none")
        if kind == "png":
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        else:
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def themed(draw: Callable[P, F]) -> Callable[P, F]:
    """Draw under the report's theme without changing that of the caller."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> F:
        theme: dict[Any, Any] = sns.axes_style("whitegrid") | THEME
        with mpl.rc_context(theme):
            return draw(*args, **kwargs)

    return wrapper


def declare(
    runs: pd.DataFrame,
    response: str,
    baseline: Mapping[str, Any],
    better: Literal["higher", "lower"] = "higher",
    unit: str = "",
    costs: Sequence[str] = (),
) -> dict[str, Any]:
    """A declaration for a table of your own, with which every figure and statistic can be called.

    `runs` has a row per run: the columns that `baseline` maps to their baseline level, the `response`, `seed`, `status`
    ("done" for runs that count) and the numeric columns named in `costs`. Levels come in order of appearance.
    """
    absent = [name for name in (response, *baseline, *costs, "seed", "status") if name not in runs]
    if absent:
        raise ValueError(f"the table lacks the columns {', '.join(absent)}; it has {', '.join(map(str, runs))}")

    def named(name: str, kind: str, better: str, unit: str) -> dict[str, str]:
        return {"name": name, "label": name.replace("_", " "), "kind": kind, "better": better, "unit": unit}

    factors = []
    for factor, first in baseline.items():
        names = dict.fromkeys([str(first), *runs[factor].astype(str)])
        levels = [{"name": name, "settings": {}, "hypothesis": None} for name in names]
        factors.append({"name": factor, "label": factor.replace("_", " "), "levels": levels})
    responses = [named(response, "accuracy", better, unit), *(named(c, "complexity", "lower", "") for c in costs)]
    return {"name": "", "title": "", "question": "", "figures": [], "factors": factors, "responses": responses}


def response_of(declaration: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """The response of that name, by default the primary one; ValueError lists those there are."""
    known = {response["name"]: response for response in declaration["responses"]}
    if name is not None and name not in known:
        raise ValueError(f"{name!r} is not a response of {declaration['name']}; allowed: {', '.join(known)}")
    return known[name] if name else declaration["responses"][0]


def present_levels(data: pd.DataFrame, factor: Mapping[str, Any]) -> list[str]:
    """The factor's levels that the data hold, in the study's order."""
    seen = set(data.loc[data["factor"] == factor["name"], "level"].unique())
    return [level["name"] for level in factor["levels"] if level["name"] in seen]


def level_colours(factor: Mapping[str, Any]) -> dict[str, str]:
    """The baseline is ink; other levels keep their colour in every figure."""
    return dict(zip([level["name"] for level in factor["levels"]], [INK, *PALETTE * 4], strict=False))


def level_lines(factor: Mapping[str, Any]) -> dict[str, str]:
    """Line styles that tell apart the levels whose colours repeat."""
    rounds = [0, *(place // len(PALETTE) for place in range(len(factor["levels"]) - 1))]
    return {level["name"]: LINES[k % len(LINES)] for level, k in zip(factor["levels"], rounds, strict=True)}


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most that many letters."""
    return "\n".join(textwrap.wrap(text, max(width, 12)))


def is_accuracy(response: Mapping[str, Any]) -> bool:
    """Whether 100 % less its value is an error."""
    return response["unit"] == "%" and response["better"] == "higher"


def height_of(lines: float, usual: float, around: float) -> float:
    """Inches of a figure of so many lines, which are closer than usual where it would not print on one page."""
    return around + lines * max(min(usual, (PAGE - around) / max(lines, 1)), LEAST_LINE)


def bounds_of(values: pd.Series, unit: str) -> tuple[float, float]:
    """Where values can lie, as far as the data tell: not below 0 if none is, nor above 100 % if none is."""
    return 0.0 if values.min() >= 0 else -math.inf, 100.0 if unit == "%" and values.max() <= 100 else math.inf


def reach(extents: Sequence[float] | pd.Series, least: float = 0.0) -> float:
    """How far from its centre an axis goes: as far as the values, unless few lie far beyond the rest.

    Those are left outside, and the figure says so: what reaches beyond 2.5 times the upper quartile. At least `least`.
    """
    sizes = np.abs(np.asarray(extents, dtype=float))
    sizes = sizes[np.isfinite(sizes)]
    if not len(sizes):
        return least
    return max(least, min(float(sizes.max()), FAR * float(np.quantile(sizes, 0.75))))


def interval_bar(
    axes: Axes, y: float, numbers: Sequence[float], ends: tuple[float, float], colour: str, marker: str, face: str
) -> None:
    """A mean with its interval (mean, low, high), cut at both `ends`, where an arrow says that it goes on."""
    mean, *interval = numbers
    if math.isfinite(interval[0]):
        axes.plot(np.clip(interval, *ends), [y, y], color=colour, lw=2.2, solid_capstyle="butt")
    for arrow, end, is_beyond in (("<", ends[0], min(numbers) < ends[0]), (">", ends[1], max(numbers) > ends[1])):
        if is_beyond:
            axes.plot(end, y, arrow, color=colour, ms=7, clip_on=False)
    if ends[0] <= mean <= ends[1]:
        axes.plot(mean, y, marker, color=colour, markerfacecolor=face, ms=7, mew=1.6)


def interval_text(row: Any, by: float) -> str:
    """`+1.2  [+0.8, +1.6]` of a row of `statistics.effects`."""
    if not math.isfinite(row.low):
        return f"{number(row.mean * by, sign=True)}  (n = {row.n})"
    digits = decimals((row.high - row.low) / 2 * by)
    mean, low, high = (number(x * by, digits, sign=True) for x in (row.mean, row.low, row.high))
    return f"{mean}  [{low}, {high}]"
