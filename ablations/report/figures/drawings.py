"""Which figures an evidence allows, with their captions, their alternative texts and the calls that draw them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import pandas as pd

from ablations.report.evidence import Evidence, curve_measure
from ablations.report.figures.comparisons import forest, forest_reach, levels
from ablations.report.figures.epidemics import (
    draw_compartments,
    draw_coverage,
    draw_history_by_noise,
    draw_peak_by_origin,
    draw_score_by_horizon,
)
from ablations.report.figures.images import (
    draw_augmentations,
    draw_confusion,
    draw_equivariance,
    draw_kernels,
    draw_shift_maps,
    published_points,
)
from ablations.report.figures.interactions import heat_map, interaction_plot, profiles, scores_by_level
from ablations.report.figures.learning import learning_curves, targets
from ablations.report.figures.studies import draw_forecasts, draw_shift_accuracy
from ablations.report.figures.theme import Drawing, interval_text, is_accuracy
from ablations.report.figures.tradeoffs import timing_ratios, timing_table, tradeoff
from ablations.report.numbers import heading, in_sentence, listing, number, scale
from ablations.statistics import interquartile_mean
from ablations.statistics.aggregate import FEWEST_CONDITIONS

STUDY_FIGURES: dict[str, Callable[[Evidence], Drawing | None]] = {
    "compartments": draw_compartments,
    "coverage": draw_coverage,
    "forecasts": draw_forecasts,
    "history_by_noise": draw_history_by_noise,
    "peak_by_origin": draw_peak_by_origin,
    "score_by_horizon": draw_score_by_horizon,
    "shift_accuracy": draw_shift_accuracy,
    "shift_maps": draw_shift_maps,
    "equivariance": draw_equivariance,
    "augmentations": draw_augmentations,
    "kernels": draw_kernels,
    "confusion": draw_confusion,
}
REFERENCE_CAPTION = " Dashed lines are forecasts without a network, averaged over the baseline's test sets."


def draw(evidence: Evidence) -> list[Drawing]:
    """All figures that the evidence allows, the forest first; each is named `<study>_<figure>`.

    A study supplies its own by naming them in its declaration: one of `STUDY_FIGURES`, or `module:function`, a function
    of the evidence that returns a Drawing, or None where the records hold nothing to draw.
    """
    done, primary = evidence.done, evidence.primary
    if done.empty or primary["name"] not in done:
        return []
    parts: list[Callable[[Evidence], Drawing | None]] = [_forest, _levels, _learning_curves, _targets]
    drawings = [part(evidence) for part in parts]
    drawings += [_tradeoff(evidence, response["name"]) for response in evidence.declaration["responses"]]
    drawings += [_interactions(evidence), _heat_map(evidence), _profiles(evidence), _timing_ratios(evidence)]
    drawings += [study_figure(name)(evidence) for name in evidence.declaration["figures"]]
    return [drawing for drawing in drawings if drawing is not None]


def study_figure(name: str) -> Callable[[Evidence], Drawing | None]:
    """The function behind a figure's name; ValueError if there is none."""
    module, colon, function = name.partition(":")
    if name in STUDY_FIGURES:
        return STUDY_FIGURES[name]
    if not colon:
        known = ", ".join(STUDY_FIGURES)
        raise ValueError(f"no figure {name!r}; a study may name {known}, or its own function as module:function")
    return getattr(import_module(module), function)


def _forest(evidence: Evidence) -> Drawing | None:
    if not len(evidence.effects):
        return None
    by, label = scale(evidence.primary), in_sentence(evidence.primary["label"])
    rows = evidence.effects[(evidence.effects["response"] == evidence.primary["name"]) & (evidence.effects["n"] > 0)]
    if rows.empty:
        return None
    items = [f"{row.factor} {row.level} {interval_text(row, by)} {row.verdict}".strip() for row in rows.itertuples()]
    is_cut = rows[["mean", "low", "high"]].abs().max(axis=None) > forest_reach(rows)
    arrows = " An arrow marks a row that reaches far beyond the others: its numbers stand beside it." if is_cut else ""
    return Drawing(
        f"{evidence.study}_forest",
        "What each level changes",
        f"Difference to the baseline in {label}, paired by seed ({evidence.seeds}), with its 95 % t interval. Grey "
        f"bands span the margin stated before the run: differences inside it would not matter.{arrows}",
        f"Forest plot of differences in {label}: {'; '.join(items)}.",
        partial(forest, evidence.effects, evidence.declaration),
        "figures.forest(evidence.effects, evidence.declaration)",
    )


def _levels(evidence: Evidence) -> Drawing:
    label = evidence.primary["label"]
    return Drawing(
        f"{evidence.study}_levels",
        "Every seed",
        f"{heading(label)} of each level: small dots are seeds, thin lines join runs of the same seed, "
        "large dots are means with 95 % t intervals. Intervals of single levels may overlap where the paired "
        f"difference is clear: seeds share data.{REFERENCE_CAPTION if evidence.references else ''}",
        f"Dot plots of {in_sentence(label)} by level, one panel per factor.",
        partial(levels, evidence.done, evidence.declaration),
        "figures.levels(evidence.done, evidence.declaration)  # or another: response='parameters'",
    )


def _learning_curves(evidence: Evidence) -> Drawing | None:
    if not len(evidence.curves):
        return None
    measure = curve_measure(evidence.curves)[0].replace("_", " ")
    return Drawing(
        f"{evidence.study}_learning_curves",
        "Learning",
        f"{heading(measure)} by epoch: mean over {evidence.seeds} with 95 % t interval, of logarithms where the axis "
        "is logarithmic (of the share of wrong answers, for accuracies). A line ends where its first run does.",
        f"Learning curves of {measure}, one panel per factor, a line per level.",
        partial(learning_curves, evidence.curves, evidence.declaration),
        "figures.learning_curves(evidence.curves, evidence.declaration)",
    )


def _targets(evidence: Evidence) -> Drawing | None:
    if evidence.target is None:
        return None
    measure = evidence.target.measure.replace("_", " ")
    return Drawing(
        f"{evidence.study}_targets",
        "Who reaches the baseline's target, and when",
        f"Share of runs whose {measure} has reached {number(evidence.target.value)}, within 5 % of the baseline's "
        "median best, by epoch: Kaplan-Meier estimates with 95 % intervals. Runs that diverged never arrive.",
        f"Step curves that rise as runs reach the target {measure}, one panel per factor, a line per level.",
        partial(targets, evidence.runs, evidence.declaration),
        "figures.targets(evidence.runs, evidence.declaration)",
    )


def _tradeoff(evidence: Evidence, cost: str) -> Drawing | None:
    price = next(r for r in evidence.declaration["responses"] if r["name"] == cost)
    if price["kind"] != "complexity" or cost not in evidence.done:
        return None
    known = evidence.done[cost].dropna().astype(float)
    if known.nunique() < 2 or known.min() <= 0:
        return None
    label, against = in_sentence(evidence.primary["label"]), in_sentence(price["label"])
    others = published_points(evidence) if cost == "parameters" else pd.DataFrame()
    far = (
        " Where errors span more than a factor of 10, the axis is logarithmic in them."
        if is_accuracy(evidence.primary)
        else ""
    )
    cited = (
        f" Hollow: of others, trained on the whole training set, {listing(list(dict.fromkeys(others['source'])))}."
        if len(others)
        else ""
    )
    return Drawing(
        f"{evidence.study}_{cost}",
        f"{heading(label)} against {against}",
        f"Mean of {label} with its 95 % t interval against {against} (log scale). The dashed line joins the conditions "
        "that none beats in both, by their means alone: the Pareto front. Levels are named where there is room."
        f"{far}{cited}",
        f"Scatter plot of {label} against {against}, a point per level, with the Pareto front.",
        partial(tradeoff, evidence.done, evidence.declaration, cost, others),
        f"figures.tradeoff(evidence.done, evidence.declaration, cost={cost!r}"
        + (", published=figures.published_points(evidence))" if len(others) else ")"),
    )


def _interactions(evidence: Evidence) -> Drawing | None:
    if not evidence.crossed:
        return None
    label = in_sentence(evidence.primary["label"])
    return Drawing(
        f"{evidence.study}_interactions",
        "What two changes do together",
        f"Difference to the joint baseline in {label}, paired by seed ({evidence.seeds}), with 95 % t intervals. "
        "Dashed lines are the sum of what each change does alone: where solid and dashed part, the factors interact.",
        f"Interaction plots of {label}, a panel per pair of factors.",
        partial(interaction_plot, evidence.done, evidence.declaration),
        "figures.interaction_plot(evidence.done, evidence.declaration)  # or others: pairs=[('a', 'b')]",
    )


def _heat_map(evidence: Evidence) -> Drawing | None:
    if not evidence.crossed:
        return None
    label = in_sentence(evidence.primary["label"])
    return Drawing(
        f"{evidence.study}_heat_map",
        "Every pair of levels",
        f"Mean of {label} and its difference to the joint baseline. Blue is better than the baseline, orange worse.",
        f"Heat maps of {label}, a panel per pair of factors.",
        partial(heat_map, evidence.done, evidence.declaration),
        "figures.heat_map(evidence.done, evidence.declaration)",
    )


def _profiles(evidence: Evidence) -> Drawing | None:
    """For the factor with the largest main effect, where the others had many settings."""
    found = evidence.main_effects
    if not len(found) or not (found["settings"] >= FEWEST_CONDITIONS).any():
        return None
    many = found[found["settings"] >= FEWEST_CONDITIONS]
    factor = str(many.sort_values("mean", key=abs)["factor"].iloc[-1])
    label, by = in_sentence(evidence.primary["label"]), scale(evidence.primary)
    scores = scores_by_level(evidence.done, evidence.declaration, factor, evidence.primary["name"])
    middles = {level: interquartile_mean(of_level) for level, of_level in scores.items()}
    texts = [
        f"{level}: {number(mean * by)} ({number(low * by)} to {number(high * by)})"
        for level, (mean, low, high) in middles.items()
    ]
    return Drawing(
        f"{evidence.study}_profiles",
        "Over all settings of the other factors",
        f"Performance profiles: share of runs at least as good as a value of {label}, over every setting of the other "
        f"factors, with 95 % intervals from resampling seeds. Interquartile means: {listing(texts)}.",
        f"Curves of the share of runs that pass a value of {label}, a line per level of {factor}.",
        partial(profiles, evidence.done, evidence.declaration, factor),
        f"figures.profiles(evidence.done, evidence.declaration, {factor!r})",
    )


def _timing_ratios(evidence: Evidence) -> Drawing | None:
    table = timing_table(evidence.done, evidence.declaration)
    if table.empty:
        return None
    ratios = zip(table["label"], table["ratio"], strict=True)
    return Drawing(
        f"{evidence.study}_timing_ratios",
        "Time of ours over native",
        "Geometric mean of the ratio of both times, taken on the same run in the exclusive timing pass, with its 95 % "
        "interval over seeds.",
        "; ".join(f"{label} {number(ratio, 2)} times native" for label, ratio in ratios),
        partial(timing_ratios, table),
        "figures.timing_ratios(figures.timing_table(evidence.done, evidence.declaration))",
    )
