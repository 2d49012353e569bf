"""What the data say of each hypothesis: differences paired by seed, intervals, tests, corrections and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

ALPHA = 0.05  # of every claim; Holm keeps it for the whole family of a study
POWER = 0.80  # of the seeds that an undecided verdict asks for
MOST_SEEDS = 1000  # a hypothesis that needs more is called out of reach
MOST_EXACT = 12  # seeds up to which all sign flips are enumerated; beyond, as many are sampled

Word = Literal["supported", "contradicted", "equivalent", "undecided"]


@dataclass(frozen=True)
class Difference:
    """Level minus baseline over `n` seed pairs, in the response's unit; NaN where the pairs cannot tell."""

    mean: float
    low: float  # 95 % t interval
    high: float
    n: int
    sd: float  # between seeds, of the paired differences
    p: float  # two-sided paired t test of no difference
    p_sign_flip: float  # exact: how many of the 2^n sign patterns are as extreme

    @property
    def sign_flip_can_decide(self) -> bool:
        """Whether so few seeds can reach alpha at all: the smallest exact p is 2 / 2^n."""
        return self.n > 0 and 2.0 / 2.0**self.n <= ALPHA


@dataclass(frozen=True)
class Verdict:
    """`more_seeds`: how many an undecided hypothesis lacks; 0 if it has enough, None if that cannot be said."""

    word: Word
    more_seeds: int | None = None


def mean_interval(values: Sequence[float] | pd.Series | np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % t interval of finite values; the interval is NaN below two values or without spread."""
    x = _finite(values)
    if len(x) == 0:
        return math.nan, math.nan, math.nan
    mean, sd = float(x.mean()), _spread(x)
    if not sd > 0:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(1 - ALPHA / 2, len(x) - 1)) * sd / math.sqrt(len(x))
    return mean, mean - half, mean + half


def paired_difference(level: pd.Series, baseline: pd.Series) -> Difference:
    """Level minus baseline; both indexed by seed, and only seeds that have a finite value in both count."""
    return _difference(_finite(level.sub(baseline)))


def paired_ratio(level: pd.Series, baseline: pd.Series) -> Difference:
    """Level over baseline minus one (0.12 is 12 % more), as a geometric mean over seeds with its t interval.

    `sd` and the p values are those of the logarithms.
    """
    logs = _difference(_finite(np.log(level.div(baseline).to_numpy())))
    mean, low, high = (math.expm1(x) for x in (logs.mean, logs.low, logs.high))
    return replace(logs, mean=mean, low=low, high=high)


def equivalence_p(difference: Difference, margin: float) -> float:
    """Two one-sided t tests: p of the claim that the true difference lies within -margin..+margin."""
    if not difference.sd > 0 or difference.n < 2:
        return math.nan
    error = difference.sd / math.sqrt(difference.n)
    return float(stats.t.sf((margin - abs(difference.mean)) / error, difference.n - 1))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p values; a NaN stays NaN and still counts as a member of the family."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # NaN last
    steps = np.minimum(p[order] * (len(p) - np.arange(len(p))), 1.0)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def seeds_to_decide(sd: float, margin: float, alpha: float = ALPHA) -> int | None:
    """Seeds with which a difference of `margin` is detected, and none at all is found equivalent, with 80 % power.

    None above 1000 seeds, or where the spread between seeds is not known.
    """
    if not sd > 0:
        return None
    n = np.arange(2, MOST_SEEDS + 1)
    shift = margin * np.sqrt(n) / sd
    detect = stats.nct.sf(stats.t.ppf(1 - alpha / 2, n - 1), n - 1, shift)
    confirm = 2 * stats.nct.sf(stats.t.ppf(1 - alpha, n - 1), n - 1, shift) - 1
    enough = n[np.minimum(detect, confirm) >= POWER]
    return int(enough[0]) if len(enough) else None


def judge(
    expects: str, margin: float, better: str, difference: Difference, p_holm: float, p_equivalence: float, family: int
) -> Verdict:
    """The verdict on one hypothesis; both p values are Holm's over a family of that size. `RULES` says it in words."""
    detected, within = p_holm <= ALPHA, p_equivalence <= ALPHA
    improved = (difference.mean > 0) == (better == "higher")
    if expects == "equal":
        beyond = difference.low > margin or difference.high < -margin
        word: Word = "supported" if within else "contradicted" if detected and beyond else "undecided"
    elif within:
        word = "equivalent"
    elif detected:
        word = "supported" if improved == (expects == "better") else "contradicted"
    else:
        word = "undecided"
    if word != "undecided":
        return Verdict(word)
    needed = seeds_to_decide(difference.sd, margin, ALPHA / max(family, 1))
    return Verdict(word, None if needed is None else max(needed - difference.n, 0))


RULES = (
    ("supported", "a difference in the expected direction was detected (Holm-corrected p at most 0.05); where no "
     "difference was expected, the difference was shown to be smaller than the margin"),
    ("contradicted", "a difference in the opposite direction was detected; where no difference was expected, one was "
     "detected and its whole 95 % interval lies beyond the margin"),
    ("equivalent", "the difference was shown to be smaller than the margin stated before the run (two one-sided t "
     "tests, Holm-corrected), although one was expected"),
    ("undecided", "the data show neither. The seeds it asks for would detect a difference as large as the margin, and "
     "confirm that there is none, with 80 % power, if the spread between seeds stays as it is"),
)  # fmt: skip


def one_factor_runs(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> pd.DataFrame:
    """Runs that differ from the baseline in at most one factor, with the columns `factor` and `level`.

    Baseline runs come once per factor, as its baseline level. Levels keep the study's order; those that it does not
    declare are left out.
    """
    factors = [factor for factor in declaration["factors"] if factor["name"] in runs]
    baseline = {factor["name"]: factor["levels"][0]["name"] for factor in factors}
    at_baseline = pd.DataFrame({name: runs[name].astype(str) == level for name, level in baseline.items()})
    frames = []
    for factor in factors:
        name, order = factor["name"], [level["name"] for level in factor["levels"]]
        mine = runs[at_baseline.drop(columns=name).all(axis=1)]
        mine = mine.assign(factor=name, level=mine[name].astype(str)).query("level in @order")
        frames.append(mine.sort_values("level", key=lambda levels, order=order: levels.map(order.index), kind="stable"))
    return pd.concat(frames, ignore_index=True) if frames else runs.assign(factor="", level="").iloc[:0]


def effects(runs: pd.DataFrame, declaration: Mapping[str, Any]) -> pd.DataFrame:
    """Every level against its baseline in every response, a row each.

    `measure` says what `mean`, `low` and `high` are: a `difference` in the response's unit, a `ratio` minus one (for
    complexity), or an `exact` ratio minus one (for counts, which do not vary between seeds and have no interval).
    `value` and `baseline` are the means over the same `n` seed pairs; `unfinished` counts the level's runs that
    diverged or failed, `missed` its finished runs without a finite value. The primary response alone carries a
    verdict and corrected p values.
    """
    rows = []
    comparable = one_factor_runs(runs, declaration)
    for factor in declaration["factors"]:
        mine = comparable[comparable["factor"] == factor["name"]]
        for level in factor["levels"][1:]:
            if (mine["level"] == level["name"]).any():
                of_level, of_baseline = (mine[mine["level"] == x["name"]] for x in (level, factor["levels"][0]))
                rows += [
                    {"factor": factor["name"], "level": level["name"]} | _effect(of_level, of_baseline, response)
                    for response in declaration["responses"]
                    if response["name"] in runs
                ]
    frame = pd.DataFrame(rows)
    return _judge_primary(frame, declaration) if rows else frame


def _effect(level: pd.DataFrame, baseline: pd.DataFrame, response: Mapping[str, Any]) -> dict[str, Any]:
    name = response["name"]
    done = {side: frame[frame["status"] == "done"] for side, frame in (("level", level), ("baseline", baseline))}
    x, y = (frame.set_index("seed")[name].astype(float) for frame in done.values())
    pairs = pd.DataFrame({"level": x, "baseline": y}).replace([np.inf, -np.inf], np.nan).dropna()
    measure = "difference"
    if response["kind"] == "complexity":
        counts = len(pairs) and (pairs.nunique() == 1).all() and (pairs % 1 == 0).all(axis=None)
        measure = "exact" if counts else "ratio"
    difference = (paired_difference if measure == "difference" else paired_ratio)(pairs["level"], pairs["baseline"])
    center = stats.gmean if measure == "ratio" else np.mean
    return {
        "response": name,
        "kind": response["kind"],
        "measure": measure,
        "value": float(center(pairs["level"])) if len(pairs) else math.nan,
        "baseline": float(center(pairs["baseline"])) if len(pairs) else math.nan,
        **{k: getattr(difference, k) for k in ("mean", "low", "high", "n", "sd", "p", "p_sign_flip")},
        "unfinished": int((level["status"] != "done").sum()),
        "missed": int((~np.isfinite(x)).sum()),
        "baseline_missed": int((~np.isfinite(y)).sum()),
    }


def _judge_primary(frame: pd.DataFrame, declaration: Mapping[str, Any]) -> pd.DataFrame:
    primary = declaration["responses"][0]
    hypotheses = {
        (factor["name"], level["name"]): level["hypothesis"]
        for factor in declaration["factors"]
        for level in factor["levels"]
    }
    mine = frame.index[frame["response"] == primary["name"]]
    planned = [i for i in mine if hypotheses[frame.at[i, "factor"], frame.at[i, "level"]]]
    for column in ("margin", "p_holm", "p_equivalence", "more_seeds"):
        frame[column] = math.nan
    for column in ("expects", "verdict"):
        frame[column] = ""
    margins = [hypotheses[frame.at[i, "factor"], frame.at[i, "level"]]["margin"] for i in planned]
    differences = [_as_difference(frame.loc[i]) for i in planned]
    p_holm = holm([d.p for d in differences])
    p_equivalence = holm([equivalence_p(d, margin) for d, margin in zip(differences, margins, strict=True)])
    for k, i in enumerate(planned):
        expects = hypotheses[frame.at[i, "factor"], frame.at[i, "level"]]["expects"]
        verdict = judge(
            expects, margins[k], primary["better"], differences[k], p_holm[k], p_equivalence[k], len(planned)
        )
        frame.loc[i, ["margin", "p_holm", "p_equivalence"]] = [margins[k], p_holm[k], p_equivalence[k]]
        frame.loc[i, ["expects", "verdict"]] = [expects, verdict.word]
        frame.loc[i, "more_seeds"] = math.nan if verdict.more_seeds is None else verdict.more_seeds
    return frame


def _as_difference(row: pd.Series) -> Difference:
    return Difference(row["mean"], row["low"], row["high"], int(row["n"]), row["sd"], row["p"], row["p_sign_flip"])


def _difference(x: np.ndarray) -> Difference:
    mean, low, high = mean_interval(x)
    sd = _spread(x)
    p = float(stats.ttest_1samp(x, 0.0).pvalue) if sd > 0 else math.nan
    return Difference(mean, low, high, len(x), sd, p, _sign_flip_p(x))


def _sign_flip_p(x: np.ndarray) -> float:
    if len(x) == 0:
        return math.nan
    if not x.any():
        return 1.0
    if len(x) <= MOST_EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(x))[:, None] >> np.arange(len(x)) & 1)
    else:
        drawn = np.random.default_rng(0).choice([-1, 1], (2**MOST_EXACT, len(x)))
        signs = np.vstack([np.ones(len(x), dtype=int), drawn])
    return float(np.mean(np.abs(signs @ x) >= abs(x.sum()) * (1 - 1e-9)))


def _spread(x: np.ndarray) -> float:
    """Standard deviation; NaN for one value, and exactly zero where only rounding differs."""
    if len(x) < 2:
        return math.nan
    sd = float(x.std(ddof=1))
    return sd if sd > 1e-12 * float(np.abs(x).max()) else 0.0


def _finite(values: Sequence[float] | pd.Series | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    return x[np.isfinite(x)]
