"""Figures of studies on images: accuracy under shifts, what augmentation does, kernels, and what is taken for what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns

from ablations.gabor import fit_gabor
from ablations.report.evidence import Evidence
from ablations.report.figures.learning import lines_by_factor
from ablations.report.figures.theme import GRID, MUTED, WIDTH, Drawing, Figure, present_levels, themed, wrapped
from ablations.report.numbers import in_sentence
from ablations.report.published import published
from ablations.statistics import baseline_runs, one_factor_runs

MOST_MAPS, MOST_KERNELS, MOST_IMAGES = 6, 8, 8
FEWEST_TO_FIT = 5  # pixels of a kernel's side: 25 numbers for the six of a fit


@themed
def shift_maps(table: pd.DataFrame, declaration: Mapping[str, Any], factor: str) -> Figure:
    """Mean accuracy on images shifted down and to the right, a panel per level of a factor.

    `table` is that of `shift_map_table`: the columns down, right, accuracy, and those of `runs`.
    """
    chosen = {f["name"]: f for f in declaration["factors"]}[factor]
    data = one_factor_runs(table, declaration)
    data = data[data["factor"] == factor].assign(accuracy=100 * data["accuracy"])
    names = present_levels(data, chosen)[:MOST_MAPS]
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.4 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for k, axes in enumerate(panels):
        if k >= len(names):
            axes.set_visible(False)
            continue
        mine = data[data["level"] == names[k]].groupby(["down", "right"])["accuracy"].mean().unstack("right")
        sns.heatmap(
            mine, annot=True, fmt=".0f", cmap="cividis", vmin=0, vmax=100, cbar=False, square=True, ax=axes,
            annot_kws={"fontsize": 6.5}, linewidths=0.5,
        )  # fmt: skip
        axes.set_title(wrapped(f"{in_sentence(chosen['label'])}: {names[k]}", 25))
        axes.tick_params(length=0)
        axes.tick_params(axis="y", rotation=0)
        axes.set(xlabel="", ylabel="")
    figure.supxlabel("Pixels to the right", fontsize=9.5)
    figure.supylabel("Pixels down", fontsize=9.5)
    return figure


@themed
def equivariance(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """Equivariance error of each layer, a line per level; `table` is that of `equivariance_table`."""
    data = one_factor_runs(table, declaration)
    return lines_by_factor(data.assign(y=100 * data["error"]), declaration, "layer", "Layer", "Equivariance error (%)")


@themed
def augmentation_samples(samples: Mapping[str, np.ndarray]) -> Figure:
    """Images (N, C, H, W), uint8, in rows by name."""
    count = min(MOST_IMAGES, *(len(images) for images in samples.values()))
    figure = Figure(figsize=(WIDTH, 0.2 + 0.72 * len(samples)), layout="compressed")
    panels = figure.subplots(len(samples), 1, squeeze=False)[:, 0]
    for axes, (name, images) in zip(panels, samples.items(), strict=True):
        _show(axes, images[:count])
        axes.set_ylabel(wrapped(name, 12), rotation=0, ha="right", va="center")
    return figure


@themed
def kernels(learned: np.ndarray, fits: Sequence[tuple[np.ndarray, float]] = ()) -> Figure:
    """Kernels (O, C, k, k), their channels averaged, above the Gabor functions that fit them and what these explain."""
    shown = learned.mean(axis=1)[:MOST_KERNELS]
    rows = 2 if fits else 1
    figure = Figure(figsize=(WIDTH, 0.35 + 1.0 * rows))
    panels = figure.subplots(rows, len(shown), squeeze=False)
    for k, kernel in enumerate(shown):
        limit = np.abs(kernel).max()
        pair = [kernel, fits[k][0]] if fits else [kernel]
        for axes, values in zip(panels[:, k], pair, strict=True):
            axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
            _bare(axes)
        if fits:
            panels[1, k].set_xlabel(f"{100 * fits[k][1]:.0f} %", fontsize=8.5)
    for axes, text in zip(panels[:, 0], ("learned", "Gabor fit"), strict=False):
        axes.set_ylabel(text)
    return figure


@themed
def confusion(counts: np.ndarray, names: Sequence[str] | None = None) -> Figure:
    """How often a class (row) is taken for another (column), in per cent of the class; the colour shows errors."""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    errors = shares.copy()
    np.fill_diagonal(errors, 0)
    labels = list(names) if names else [str(k) for k in range(len(counts))]
    many = len(counts) > 20
    text = np.array([[f"{x:.1f}" if x >= 0.05 else "" for x in row] for row in shares])
    figure = Figure(figsize=(0.78 * WIDTH, 0.66 * WIDTH))
    axes = figure.add_subplot()
    sns.heatmap(
        errors, annot=False if many else text, fmt="", cmap="Oranges", vmin=0, vmax=max(errors.max(), 1e-9), cbar=False,
        square=True, ax=axes, linewidths=0.0 if many else 1, linecolor=GRID, annot_kws={"fontsize": 7.5},
        xticklabels="auto" if many else labels, yticklabels="auto" if many else labels,
    )  # fmt: skip
    axes.set_xlabel("Taken for")
    axes.set_ylabel("Is (%)")
    axes.tick_params(length=0)
    axes.tick_params(axis="y", rotation=0)
    return figure


def shift_map_table(evidence: Evidence) -> pd.DataFrame:
    """Accuracy by shift down and to the right of every done run, with the columns of `runs`."""
    frames = []
    for key in one_factor_runs(evidence.done, evidence.declaration)["key"].unique():
        arrays = evidence.predictions(key, ("shift_map", "shift_pixels"))
        if "shift_map" in arrays:
            pixels = arrays["shift_pixels"]
            down, right = np.meshgrid(pixels, pixels, indexing="ij")
            columns = {"down": down.ravel(), "right": right.ravel(), "accuracy": arrays["shift_map"].ravel()}
            frames.append(pd.DataFrame(columns).assign(key=key))
    if not frames:
        return pd.DataFrame()
    return pd.concat(frames).merge(evidence.done.drop(columns="accuracy", errors="ignore"), on="key")


def equivariance_table(evidence: Evidence) -> pd.DataFrame:
    """Equivariance error by layer of every done run, with the columns of `runs`."""
    errors = {
        key: evidence.predictions(key, ("equivariance_errors",)).get("equivariance_errors", np.empty(0))
        for key in one_factor_runs(evidence.done, evidence.declaration)["key"].unique()
    }
    rows = [(key, 1 + layer, float(error)) for key, of_run in errors.items() for layer, error in enumerate(of_run)]
    return pd.DataFrame(rows, columns=["key", "layer", "error"]).merge(
        evidence.done.drop(columns="error", errors="ignore"), on="key"
    )


def most_moving(table: pd.DataFrame, evidence: Evidence) -> str:
    """The factor whose levels differ most in mean accuracy under shifts."""
    data = one_factor_runs(table, evidence.declaration)
    means = data.groupby(["factor", "level"])["accuracy"].mean().groupby("factor")
    return str((means.max() - means.min()).idxmax())


def augmented_images(evidence: Evidence) -> dict[str, np.ndarray]:
    """The first training images of the lowest seed, as they are and as every level of augmentation shows them."""
    runs = one_factor_runs(evidence.done, evidence.declaration)
    runs = runs[(runs["factor"] == "augmentation") & (runs["seed"] == runs["seed"].min())]
    samples: dict[str, np.ndarray] = {}
    for factor in (f for f in evidence.declaration["factors"] if f["name"] == "augmentation"):
        for name in present_levels(runs, factor):
            arrays = evidence.predictions(runs.loc[runs["level"] == name, "key"].iloc[0], ("augmented",))
            if "augmented" in arrays:
                samples[name] = arrays["augmented"]
    return samples if len(samples) > 1 else {}


def widest_kernels(evidence: Evidence) -> tuple[str, np.ndarray] | None:
    """The condition and the learned first kernels with the most places, of the lowest seed; the baseline's first."""
    runs = one_factor_runs(evidence.done, evidence.declaration)
    if "first_layer" in runs:
        runs = runs[runs["first_layer"] == "learned"]
    best: tuple[str, np.ndarray] | None = None
    for run in runs[runs["seed"] == runs["seed"].min()].drop_duplicates("key").to_dict("records"):
        found = evidence.predictions(run["key"], ("first_kernels",)).get("first_kernels")
        if found is not None and (best is None or found.shape[-1] > best[1].shape[-1]):
            best = f"{run['factor']} {run['level']}", found
    return best


def confusion_counts(evidence: Evidence) -> np.ndarray:
    """Test images of each class (rows) taken for each (columns), over the baseline's runs; empty without any."""
    keys = baseline_runs(evidence.done, evidence.declaration)["key"]
    runs = [evidence.predictions(key, ("label", "predicted")) for key in keys]
    runs = [arrays for arrays in runs if "predicted" in arrays]
    if not runs:
        return np.zeros((0, 0), int)
    classes = 1 + max(int(max(arrays["label"].max(), arrays["predicted"].max())) for arrays in runs)
    counts = np.zeros((classes, classes), int)
    for arrays in runs:
        np.add.at(counts, (arrays["label"], arrays["predicted"]), 1)
    return counts


def published_points(evidence: Evidence) -> pd.DataFrame:
    """What others reached on the data set of these runs, where accuracy is the primary response; see `published`."""
    if evidence.primary["name"] != "accuracy":
        return published("")
    return published(str(evidence.predictions(evidence.done["key"].iloc[0], ("data",)).get("data", "")))


def draw_shift_maps(evidence: Evidence) -> Drawing | None:
    """The figure `shift_maps`, of the factor whose levels differ most, if runs left their accuracy by shift."""
    table = shift_map_table(evidence)
    if table.empty:
        return None
    factor = most_moving(table, evidence)
    chosen = {f["name"]: f for f in evidence.declaration["factors"]}[factor]
    label = chosen["label"]
    count = len(present_levels(one_factor_runs(table, evidence.declaration), chosen))
    only = f" The first {MOST_MAPS} of {count} levels are shown." if count > MOST_MAPS else ""
    return Drawing(
        f"{evidence.study}_shift_maps",
        "Accuracy under shifts in two dimensions",
        f"Test accuracy in per cent when images are shifted down and to the right, by {in_sentence(label)}: the factor "
        f"whose levels differ most. Means over {evidence.seeds}; what is shifted out of the frame is lost.{only}",
        f"Heat maps of test accuracy over shifts in two directions, one per level of {in_sentence(label)}.",
        partial(shift_maps, table, evidence.declaration, factor),
        f"figures.shift_maps(figures.shift_map_table(evidence), evidence.declaration, {factor!r})",
    )


def draw_equivariance(evidence: Evidence) -> Drawing | None:
    """The figure `equivariance`, if runs left the errors of their layers."""
    table = equivariance_table(evidence)
    if table.empty:
        return None
    return Drawing(
        f"{evidence.study}_equivariance",
        "Do maps move with the image?",
        "How far each layer's maps are from moving with an image that is rolled by 3 pixels, over their spread: mean "
        f"over {evidence.seeds} with 95 % t interval. At 0 they only move; what pooling skips and edges cut off adds.",
        "Lines of the equivariance error over layers, one panel per factor, a line per level.",
        partial(equivariance, table, evidence.declaration),
        "figures.equivariance(figures.equivariance_table(evidence), evidence.declaration)",
    )


def draw_augmentations(evidence: Evidence) -> Drawing | None:
    """The figure `augmentations`, if several levels of a factor of that name left images."""
    samples = augmented_images(evidence)
    if not samples:
        return None
    return Drawing(
        f"{evidence.study}_augmentations",
        "What augmentation shows the network",
        "The same training images under each augmentation, one draw of many: every epoch draws anew.",
        f"Rows of the same images, one for each augmentation: {', '.join(samples)}.",
        partial(augmentation_samples, samples),
        "figures.augmentation_samples(figures.augmented_images(evidence))",
    )


def draw_kernels(evidence: Evidence) -> Drawing | None:
    """The figure `kernels`, if runs left those of their first layer."""
    found = widest_kernels(evidence)
    if found is None:
        return None
    condition, learned = found
    fits = gabor_fits(learned)
    explained = (
        "Below, the Gabor functions that fit them best, and the share of each kernel's variance that they explain."
        if fits
        else f"Kernels of {learned.shape[-1]} x {learned.shape[-1]} have too few numbers for a Gabor fit to tell."
    )
    return Drawing(
        f"{evidence.study}_kernels",
        "What the first layer looks for",
        f"Kernels of the first layer of one trained network ({condition}, its lowest seed). {explained}",
        f"Small images of {min(len(learned), MOST_KERNELS)} kernels" + (" and of their Gabor fits." if fits else "."),
        partial(kernels, learned, fits),
        "figures.kernels(learned := figures.widest_kernels(evidence)[1], figures.gabor_fits(learned))",
    )


def draw_confusion(evidence: Evidence) -> Drawing | None:
    """The figure `confusion`, if the baseline's runs left their answers."""
    counts = confusion_counts(evidence)
    if not counts.size:
        return None
    return Drawing(
        f"{evidence.study}_confusion",
        "What is taken for what",
        f"Of the test images of each class, the per cent that the baseline network takes for each, over "
        f"{evidence.seeds}. Colour shows errors only; below 0.05 % nothing is written.",
        "Confusion matrix of the baseline network: classes in rows, answers in columns.",
        partial(confusion, counts),
        "figures.confusion(figures.confusion_counts(evidence))",
    )


def gabor_fits(learned: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """The Gabor functions that fit the kernels (O, C, k, k), channels averaged; none for kernels below 5 x 5."""
    if learned.shape[-1] < FEWEST_TO_FIT:
        return []
    return [fit_gabor(kernel.astype(float)) for kernel in learned.mean(axis=1)[:MOST_KERNELS]]


def _show(axes: Any, images: np.ndarray) -> None:
    """Images (N, C, H, W) side by side, a gap of a tenth of their width between them."""
    gap = max(1, images.shape[-1] // 10)
    strip = np.concatenate(np.pad(images, ((0, 0), (0, 0), (0, 0), (0, gap)), constant_values=255), axis=-1)[..., :-gap]
    axes.imshow(strip.transpose(1, 2, 0), cmap=mpl.colormaps["gray"], vmin=0, vmax=255)
    _bare(axes)


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(MUTED)
        spine.set_linewidth(0.5)
