"""Main effects and two-way interactions where factors were crossed: contrasts within each seed, seeds as blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ablations.statistics.decisions import benjamini_hochberg
from ablations.statistics.paired import Difference, difference_of


def contrast(
    runs: pd.DataFrame, factors: list[str], changed: Mapping[str, tuple[str, str]], response: str
) -> tuple[Difference, int]:
    """The contrast of the changed factors over seeds, and in how many settings of the other factors it was taken.

    `changed` maps one factor to (level, baseline) for its main effect, level minus baseline; two factors for their
    interaction: what both changes do together beyond the sum of what each does alone, y_ab - y_a - y_b + y_0. Within a
    seed the contrast is averaged over all settings of the other `factors`; a seed counts if it has them all, and a
    setting that no seed has complete is left out. Its error is thus the seed-by-treatment spread of this very
    contrast, which assumes no equal variances (no sphericity) between treatments.
    """
    others = [factor for factor in factors if factor not in changed]
    values = runs.pivot_table(index=[*others, "seed"], columns=list(changed), values=response, aggfunc="first")
    total: Any = 0.0
    for side in itertools.product((0, 1), repeat=len(changed)):
        cell = tuple(levels[k] for levels, k in zip(changed.values(), side, strict=True))
        column = cell if len(cell) > 1 else cell[0]
        total = total + (-1) ** sum(side) * values.get(column, math.nan)
    if not isinstance(total, pd.Series):
        return difference_of([]), 0
    total = total.replace([np.inf, -np.inf], np.nan)
    by_seed = (total.unstack(others) if others else total.to_frame()).dropna(axis="columns", how="all")
    return difference_of(by_seed.dropna().mean(axis=1)), by_seed.shape[1]


def main_effects(runs: pd.DataFrame, declaration: Mapping[str, Any], response: str) -> pd.DataFrame:
    """Level minus baseline averaged over the settings of the other factors, a row per level of a crossed factor.

    Columns: factor, level, settings, and those of `Difference`. Factors that were never crossed have no row: there the
    effect at the baseline is all that is known.
    """
    done, factors = _crossable(runs, declaration, response)
    rows = []
    for factor in factors:
        names = [f["name"] for f in factors]
        baseline = factor["levels"][0]["name"]
        for level in factor["levels"][1:]:
            found, settings = contrast(done, names, {factor["name"]: (level["name"], baseline)}, response)
            if found.n and settings > 1:
                rows.append({"factor": factor["name"], "level": level["name"], "settings": settings} | vars(found))
    return pd.DataFrame(rows)


def interactions(runs: pd.DataFrame, declaration: Mapping[str, Any], response: str) -> pd.DataFrame:
    """Two-way interactions of all levels that were crossed, a row each; empty for one factor at a time.

    Columns: factor, level, other_factor, other_level, settings, those of `Difference`, and `q`, the p value corrected
    by Benjamini-Hochberg, since which pairs interact is explored, not planned.
    """
    done, factors = _crossable(runs, declaration, response)
    names, rows = [factor["name"] for factor in factors], []
    conditions = done[names].drop_duplicates() if names else done
    for one, other in itertools.combinations(factors, 2):
        together = set(zip(conditions[one["name"]], conditions[other["name"]], strict=True))
        for a, b in itertools.product(one["levels"][1:], other["levels"][1:]):
            if (a["name"], b["name"]) not in together:
                continue
            changed = {
                one["name"]: (a["name"], one["levels"][0]["name"]),
                other["name"]: (b["name"], other["levels"][0]["name"]),
            }
            found, settings = contrast(done, names, changed, response)
            if found.n:
                pair = {"factor": one["name"], "level": a["name"]}
                pair |= {"other_factor": other["name"], "other_level": b["name"], "settings": settings}
                rows.append(pair | vars(found))
    frame = pd.DataFrame(rows)
    return frame.assign(q=benjamini_hochberg(frame["p"].to_numpy())) if rows else frame


def crossed_cells(
    runs: pd.DataFrame, declaration: Mapping[str, Any], factor: str, other: str, response: str
) -> pd.DataFrame:
    """Every combination of two factors' levels against their joint baseline, a row each.

    Columns: level, other_level, value (mean over seeds), those of `Difference` (paired by seed), and `expected`, the
    sum of what either change does alone. As in `contrast`, each is averaged within seeds over the settings of the other
    factors, where all four of its cells were run; settings in which the two factors never change together do not count.
    """
    done, factors = _crossable(runs, declaration, response)
    by_name = {f["name"]: f for f in factors}
    others = [name for name in by_name if name not in (factor, other)]
    values = done.pivot_table(index=[*others, "seed"], columns=[factor, other], values=response, aggfunc="first")
    a0, b0 = (by_name[name]["levels"][0]["name"] for name in (factor, other))
    together = [cell for cell in values.columns.to_flat_index() if cell[0] != a0 and cell[1] != b0]
    values = values[values[together].notna().any(axis=1)] if together else values
    rows = []
    for a, b in itertools.product(*([level["name"] for level in by_name[name]["levels"]] for name in (factor, other))):
        needed = [(a, b), (a, b0), (a0, b), (a0, b0)]
        if all(cell in values for cell in needed):
            both, one, two, none = (values[cell] for cell in needed)
            cells = pd.DataFrame({"value": both, "mean": both - none, "expected": one + two - 2 * none}).dropna()
            by_seed = cells.groupby("seed").mean()
            if len(by_seed):
                found = vars(difference_of(by_seed["mean"]))
                means = {"value": by_seed["value"].mean(), "expected": by_seed["expected"].mean()}
                rows.append({"level": a, "other_level": b} | found | means)
    return pd.DataFrame(rows)


def _crossable(
    runs: pd.DataFrame, declaration: Mapping[str, Any], response: str
) -> tuple[pd.DataFrame, list[Mapping[str, Any]]]:
    """Finished runs with their levels as text, and the factors of which several levels were run."""
    if runs.empty or response not in runs:
        return runs, []
    done = runs[runs["status"] == "done"]
    factors = [f for f in declaration["factors"] if f["name"] in done and done[f["name"]].nunique() > 1]
    return done.astype({f["name"]: str for f in factors} | {response: float}), factors
