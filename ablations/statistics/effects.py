"""Every level of a study against its baseline, in every response, on the runs that differ in that factor alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ablations.statistics.decisions import ALPHA, benjamini_hochberg, equivalence_p, holm, judge, smallest_detectable
from ablations.statistics.paired import (
    Difference,
    hedges,
    paired_difference,
    paired_median,
    paired_ratio,
    probability_of_improvement,
)

COMPARE = {"difference": paired_difference, "median": paired_median, "ratio": paired_ratio, "exact": paired_ratio}


def one_factor_runs(runs: pd.DataFrame, declaration: Mapping[str, Any], only: str | None = None) -> pd.DataFrame:
    """Runs that differ from the baseline in at most one factor, with the columns `factor` and `level`.

    Baseline runs come once per factor, as its baseline level. Levels keep the study's order; those that it does not
    declare are left out. `only`: the runs of that factor alone.
    """
    factors = [factor for factor in declaration["factors"] if factor["name"] in runs]
    levels = {factor["name"]: runs[factor["name"]].astype(str).to_numpy(object) for factor in factors}
    changed = np.array([levels[factor["name"]] != factor["levels"][0]["name"] for factor in factors])  # (factor, run)
    frames = []
    for k, factor in enumerate(factors):
        if only not in (None, factor["name"]):
            continue
        places = {level["name"]: place for place, level in enumerate(factor["levels"])}
        alone = np.flatnonzero(changed.sum(axis=0) == changed[k])
        place = np.array([places.get(level, -1) for level in levels[factor["name"]][alone]], dtype=int)
        order = np.argsort(place, kind="stable")
        chosen = alone[order[place[order] >= 0]]
        frames.append(runs.iloc[chosen].assign(factor=factor["name"], level=levels[factor["name"]][chosen]))
    return pd.concat(frames, ignore_index=True) if frames else runs.assign(factor="", level="").iloc[:0]


def baseline_runs(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> pd.DataFrame:
    """Runs with every factor at its baseline level."""
    chosen = np.ones(len(runs), dtype=bool)
    for factor in declaration["factors"]:
        if factor["name"] in runs:
            chosen &= runs[factor["name"]].astype(str).to_numpy(object) == factor["levels"][0]["name"]
    return runs[chosen]


def seed_pairs(
    runs: pd.DataFrame, declaration: Mapping[str, Any], factor: str, level: str, response: Mapping[str, Any]
) -> pd.DataFrame:
    """The pairs of runs behind one row of `effects`: by seed, the values `level` and `baseline` and each run's key."""
    factors = [f["name"] for f in declaration["factors"] if f["name"] in runs]
    columns = [*factors, "seed", "status", "key", response["name"]]  # the last is absent where every run failed early
    mine = one_factor_runs(runs.reindex(columns=columns), declaration, factor)
    first = next(f["levels"][0]["name"] for f in declaration["factors"] if f["name"] == factor)
    sides = {"level": mine[mine["level"] == level], "baseline": mine[mine["level"] == first]}
    measure = response.get("measure", "difference")
    x, y = (_counted(frame, measure)[response["name"]].astype(float) for frame in sides.values())
    pairs = _pairs(x, y, measure)
    keys = {f"{side}_key": frame.set_index("seed")["key"].reindex(pairs.index) for side, frame in sides.items()}
    return pairs.assign(**keys)


def effects(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> pd.DataFrame:
    """Every level against its baseline in every response, a row each.

    `measure` says what `mean`, `low` and `high` are: a `difference` in the response's unit, a `ratio` minus one (for
    complexity), an `exact` ratio minus one (for counts, which do not vary between seeds and have no interval), or the
    `median` of the differences (for times that may be infinite: there `value` and `baseline` are medians too, and runs
    that diverged count as never). Otherwise `value` and `baseline` are means over the same `n` seed pairs.
    `effect_size` is Hedges' g, in seed standard deviations; `improvement` the share of seeds on which the level is
    better, with its exact interval. `tried`, `diverged` and `failed` count runs of the level, `baseline_...` those of
    the baseline; `missed` counts its finished runs without a finite value.

    What the hypotheses state, of the primary response and of those they also name, is the planned family: it alone
    carries verdicts, Holm's p values and the smallest `detectable` differences. All other p values explore, and `q`
    corrects them by Benjamini-Hochberg.
    """
    rows = []
    measured = [response for response in declaration["responses"] if response["name"] in runs]
    measures = {response.get("measure", "difference") for response in measured}
    comparable = one_factor_runs(runs, declaration)
    for factor in declaration["factors"]:
        mine = comparable[comparable["factor"] == factor["name"]]
        of_baseline = mine[mine["level"] == factor["levels"][0]["name"]]
        for level in factor["levels"][1:]:
            of_level = mine[mine["level"] == level["name"]]
            if len(of_level):
                known = {"factor": factor["name"], "level": level["name"]} | _outcomes(of_level, of_baseline)
                frames = {
                    measure: (_counted(of_level, measure), _counted(of_baseline, measure)) for measure in measures
                }
                rows += [
                    known | _effect(*frames[response.get("measure", "difference")], response) for response in measured
                ]
    frame = pd.DataFrame(rows)
    return _explore(_judge(frame, declaration)) if rows else frame


def _outcomes(level: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, int]:
    counts = {}
    for side, frame in (("", level), ("baseline_", baseline)):
        counts[f"{side}tried"] = len(frame)
        counts |= {f"{side}{status}": int((frame["status"] == status).sum()) for status in ("diverged", "failed")}
    return counts


def _effect(level: pd.DataFrame, baseline: pd.DataFrame, response: Mapping[str, Any]) -> dict[str, Any]:
    """One row of `effects`, of the runs that count, by seed."""
    name, measure = response["name"], response.get("measure", "difference")
    x, y = level[name].astype(float), baseline[name].astype(float)
    pairs = _pairs(x, y, measure)
    if response["kind"] == "complexity":
        counts = len(pairs) and (pairs.nunique() == 1).all() and (pairs % 1 == 0).all(axis=None)
        measure = "exact" if counts else "ratio"
    difference = COMPARE[measure](pairs["level"], pairs["baseline"])
    center = {"ratio": stats.gmean, "median": np.median}.get(measure, np.mean)
    improvement = probability_of_improvement(pairs["level"], pairs["baseline"], response["better"])
    return {
        "response": name,
        "kind": response["kind"],
        "measure": measure,
        "value": float(center(pairs["level"])) if len(pairs) else math.nan,
        "baseline": float(center(pairs["baseline"])) if len(pairs) else math.nan,
        **{k: getattr(difference, k) for k in ("mean", "low", "high", "n", "sd", "p", "p_sign_flip")},
        "effect_size": hedges(pairs["level"], pairs["baseline"]) if measure == "difference" else math.nan,
        **dict(zip(("improvement", "improvement_low", "improvement_high"), improvement, strict=True)),
        "missed": int((~np.isfinite(x)).sum()),
        "baseline_missed": int((~np.isfinite(y)).sum()),
    }


def _counted(runs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """By seed, the runs that count: for medians those that diverged, too, since they never arrive."""
    counted = ["done", "diverged"] if measure == "median" else ["done"]
    return runs[runs["status"].isin(counted)].set_index("seed")


def _pairs(level: pd.Series, baseline: pd.Series, measure: str) -> pd.DataFrame:
    pairs = pd.DataFrame({"level": level, "baseline": baseline})
    kept = pairs.notna() if measure == "median" else pd.DataFrame(np.isfinite(pairs))
    return pairs[kept.all(axis=1)]


def _judge(frame: pd.DataFrame, declaration: Mapping[str, Any]) -> pd.DataFrame:
    expectations, better = _expectations(declaration), {r["name"]: r["better"] for r in declaration["responses"]}
    stated = [expectations.get(key) for key in zip(frame["factor"], frame["level"], frame["response"], strict=True)]
    for column in ("margin", "p_holm", "p_equivalence", "more_seeds", "detectable"):
        frame[column] = math.nan
    for column in ("expects", "verdict"):
        frame[column] = ""
    planned = [(i, *expected) for i, expected in zip(frame.index, stated, strict=True) if expected]
    differences = [_as_difference(frame.loc[i]) for i, _, _ in planned]
    p_holm = holm([d.p for d in differences])
    p_equivalence = holm([equivalence_p(d, margin) for d, (_, _, margin) in zip(differences, planned, strict=True)])
    for k, (i, expects, margin) in enumerate(planned):
        difference, direction = differences[k], better[frame.at[i, "response"]]
        verdict = judge(expects, margin, direction, difference, p_holm[k], p_equivalence[k], len(planned))
        frame.loc[i, ["margin", "p_holm", "p_equivalence"]] = [margin, p_holm[k], p_equivalence[k]]
        frame.loc[i, ["expects", "verdict"]] = [expects, verdict.word]
        frame.loc[i, "more_seeds"] = math.nan if verdict.more_seeds is None else verdict.more_seeds
        frame.loc[i, "detectable"] = smallest_detectable(difference.sd, difference.n, ALPHA / len(planned))
    return frame


def _expectations(declaration: Mapping[str, Any]) -> dict[tuple[str, str, str], tuple[str, float]]:
    """By factor, level and response: what was expected, and the margin."""
    found = {}
    for factor in declaration["factors"]:
        for level in factor["levels"]:
            if hypothesis := level["hypothesis"]:
                primary = {"response": declaration["responses"][0]["name"]} | hypothesis
                for stated in (primary, *hypothesis.get("also", ())):
                    found[factor["name"], level["name"], stated["response"]] = stated["expects"], stated["margin"]
    return found


def _explore(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `q`: Benjamini-Hochberg over all p values that no hypothesis planned."""
    return frame.assign(q=benjamini_hochberg(frame["p"].where(frame["expects"] == "").to_numpy()))


def _as_difference(row: pd.Series) -> Difference:
    return Difference(row["mean"], row["low"], row["high"], int(row["n"]), row["sd"], row["p"], row["p_sign_flip"])
