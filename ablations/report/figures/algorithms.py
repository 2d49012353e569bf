"""Which algorithm of a convolution wins where, and what each costs in digits and in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ablations.report.evidence import Evidence
from ablations.report.figures.theme import INK, MARKERS, WIDTH, Drawing, Figure, level_colours, themed
from ablations.statistics import paired_ratio

GEOMETRY = ["kernel", "channels", "size", "batch_size"]
MODES = {"seconds_per_step": "training step", "seconds_per_inference": "inference"}
PICKED = "auto"  # picks one of the others


def algorithm_table(evidence: Evidence, response: str) -> pd.DataFrame:
    """The baseline's value over each algorithm's, paired by seed, per geometry: above 1 the algorithm needs less.

    Columns: algorithm, kernel, channels, size, batch_size, gain, low, high, n; empty without such values.
    """
    runs = evidence.done
    if response not in runs or runs[response].isna().all():
        return pd.DataFrame()
    baseline = evidence.declaration["factors"][0]["levels"][0]["name"]
    rows = []
    for geometry, of_geometry in runs.groupby(GEOMETRY, sort=False):
        values = {
            name: mine.set_index("seed")[response].astype(float) for name, mine in of_geometry.groupby("algorithm")
        }
        for name in values if baseline in values else ():
            found = paired_ratio(values[baseline], values[name])
            gain = {"gain": 1 + found.mean, "low": 1 + found.low, "high": 1 + found.high, "n": found.n}
            rows.append({"algorithm": name, **dict(zip(GEOMETRY, geometry, strict=True)), **gain})
    return pd.DataFrame(rows)


@themed
def winners(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """The fastest algorithm of each geometry, and how many times as fast as the baseline it is.

    `table` is that of `algorithm_table`. A panel per batch size; below the winner stands what the pick gains.
    """
    factor = declaration["factors"][0]
    colours = level_colours(factor)
    rivals, picks = table[table["algorithm"] != PICKED], table[table["algorithm"] == PICKED]
    batches = _ordered(table["batch_size"])
    kernels = _ordered(table["kernel"])
    columns = sorted(set(zip(table["channels"], table["size"], strict=True)), key=lambda pair: tuple(map(int, pair)))
    figure = Figure(figsize=(WIDTH, 0.9 + len(batches) * (0.7 + 0.46 * len(kernels))))
    panels = figure.subplots(len(batches), 1, squeeze=False)[:, 0]
    for axes, batch in zip(panels, batches, strict=True):
        for y, kernel in enumerate(kernels):
            for x, (channels, size) in enumerate(columns):
                place = {"kernel": kernel, "channels": channels, "size": size, "batch_size": batch}
                mine = _at(rivals, place)
                if mine.empty:
                    continue
                best = mine.sort_values("gain").to_dict("records")[-1]
                axes.add_patch(_cell(x, y, colours[best["algorithm"]]))
                pick = _at(picks, place)
                text = f"{best['algorithm']} {best['gain']:.1f}"
                text += f"\n{PICKED} {pick['gain'].iloc[0]:.1f}" if len(pick) else ""
                axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=INK, linespacing=1.35)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(kernels) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [f"{channels}\n{size} x {size}" for channels, size in columns])
        axes.set_yticks(range(len(kernels)), [f"{kernel} x {kernel}" for kernel in kernels])
        axes.set_ylabel("Kernel")
        axes.grid(visible=False)
        axes.set_title("One image at a time" if batch == "1" else f"Batches of {batch} images")
    panels[-1].set_xlabel("Input channels, and the image in pixels")
    seen = set(rivals["algorithm"])
    handles = [
        Patch(color=colours[level["name"]], alpha=0.35, label=level["name"])
        for level in factor["levels"]
        if level["name"] in seen
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


@themed
def exactness(runs: pd.DataFrame, memory: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Correct digits by the number of products that are summed, and memory over the baseline's by the kernel's size.

    `memory` is the table of `algorithm_table` for the memory of a training step.
    """
    factor = declaration["factors"][0]
    colours = level_colours(factor)
    figure = Figure(figsize=(WIDTH, 3.2))
    left, right = figure.subplots(1, 2)
    depth = runs["channels"].astype(int) * runs["kernel"].astype(int) ** 2
    for k, level in enumerate(level["name"] for level in factor["levels"]):
        look = {"color": colours[level], "marker": MARKERS[k % len(MARKERS)], "ms": 4, "lw": 1.4, "label": level}
        digits = runs[runs["algorithm"] == level].groupby(depth)["digits"].mean()
        left.plot(digits.index, digits, **look)
        mine = memory[memory["algorithm"] == level]
        bytes_over = (1 / mine["gain"].astype(float)).groupby(mine["kernel"].astype(int)).agg(_geometric_mean)
        right.plot(bytes_over.index, bytes_over, **look)
    left.set_xscale("log")
    _plain_ticks(left.xaxis, (1,))
    left.set_xlabel("Products that are summed for a pixel")
    left.set_ylabel("Correct digits of the output")
    right.set_yscale("log")
    _plain_ticks(right.yaxis, (1, 2, 5))
    right.set_xticks(sorted(set(memory["kernel"].astype(int))))
    right.set_xlabel("Side of the kernel")
    right.set_ylabel("Memory over the baseline's")
    figure.legend(handles=left.get_lines(), loc="outside upper center", ncols=len(factor["levels"]))
    return figure


def _plain_ticks(axis: Axis, steps: tuple[int, ...]) -> None:
    """Ticks at `steps` times powers of ten, written out."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g}"))
    axis.set_minor_formatter(NullFormatter())


def _geometric_mean(values: pd.Series) -> float:
    return float(np.exp(np.log(values).mean()))


def _ordered(levels: pd.Series) -> list[str]:
    return sorted(set(levels), key=int)


def _at(table: pd.DataFrame, place: Mapping[str, str]) -> pd.DataFrame:
    return table[(table[list(place)] == pd.Series(place)).all(axis=1)]


def _cell(x: int, y: int, colour: str) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour, alpha=0.35, lw=0)


def draw_training(evidence: Evidence) -> Drawing | None:
    """The winners of a training step."""
    return _draw(evidence, "seconds_per_step")


def draw_inference(evidence: Evidence) -> Drawing | None:
    """The winners of an inference."""
    return _draw(evidence, "seconds_per_inference")


def _draw(evidence: Evidence, response: str) -> Drawing | None:
    table = algorithm_table(evidence, response)
    if table.empty:
        return None
    mode = MODES[response]
    return Drawing(
        f"{evidence.study}_winners_{mode.replace(' ', '_')}",
        f"Which algorithm wins a {mode}" if mode[0] != "i" else f"Which algorithm wins an {mode}",
        "The fastest algorithm of each geometry, and how many times as fast as torch's own ops it is; below it the "
        "same for the algorithm that is picked. Steps on one thread, taken in turns in random order with nothing else "
        f"on the machine; geometric means over {evidence.seeds}.",
        "A table of kernels by channels and image sizes, coloured by the algorithm that is fastest there.",
        partial(winners, table, evidence.declaration),
        f"figures.winners(figures.algorithm_table(evidence, {response!r}), evidence.declaration)",
    )


def draw_errors(evidence: Evidence) -> Drawing | None:
    """The figure `exactness`, if there are runs."""
    memory = algorithm_table(evidence, "peak_memory")
    if memory.empty:
        return None
    return Drawing(
        f"{evidence.study}_exactness",
        "What each algorithm costs in digits and in memory",
        f"Left: digits in which an output in float32 agrees with the same sum in float64, means over {evidence.seeds} "
        "and geometries. Right: what a training step holds in memory, over what it holds with torch's own ops.",
        "Lines of correct digits over the length of the sum, and of memory over the kernel's size, one per algorithm.",
        partial(exactness, evidence.done, memory, evidence.declaration),
        "figures.exactness(evidence.done, figures.algorithm_table(evidence, 'peak_memory'), evidence.declaration)",
    )
