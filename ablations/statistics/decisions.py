"""From p values to verdicts: corrections for many questions, equivalence, power, and the rules of each verdict."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

from ablations.statistics.paired import ALPHA, Difference

POWER = 0.80  # of the seeds that an undecided verdict asks for, and of the smallest detectable difference
MOST_SEEDS = 1000  # a hypothesis that needs more is called out of reach

Word = Literal["supported", "contradicted", "equivalent", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """`more_seeds`: how many an undecided hypothesis lacks; 0 if it has enough, None if that cannot be said."""

    word: Word
    more_seeds: int | None = None


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p values; a NaN stays NaN and still counts as a member of the family."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # NaN last
    steps = np.minimum(p[order] * (len(p) - np.arange(len(p))), 1.0)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p values that keep the expected share of false discoveries; a NaN stays NaN and counts as not tested."""
    p = np.asarray(p, dtype=float)
    tested = np.isfinite(p)
    adjusted = np.full(len(p), math.nan)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested], method="bh")
    return adjusted


def equivalence_p(difference: Difference, margin: float) -> float:
    """Two one-sided t tests: p of the claim that the true difference lies within -margin..+margin."""
    if not difference.sd > 0 or difference.n < 2:
        return math.nan
    error = difference.sd / math.sqrt(difference.n)
    return float(stats.t.sf((margin - abs(difference.mean)) / error, difference.n - 1))


def smallest_detectable(sd: float, n: int, alpha: float = ALPHA) -> float:
    """The true difference that a paired t test of `n` seeds detects with 80 % power; NaN if that cannot be known."""
    if not sd > 0 or n < 2:
        return math.nan
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift)) - POWER

    return float(optimize.brentq(lacking, 0.0, 10 * critical + 10)) * sd / math.sqrt(n)


def seeds_to_decide(sd: float, margin: float, alpha: float = ALPHA) -> int | None:
    """Seeds with which a difference of `margin` is detected, and none at all is found equivalent, with 80 % power.

    None above 1000 seeds, or where the spread between seeds is not known.
    """
    if not sd > 0:
        return None

    def decides(n: int) -> bool:
        shift = margin * math.sqrt(n) / sd
        detect = stats.nct.sf(stats.t.ppf(1 - alpha / 2, n - 1), n - 1, shift)
        confirm = 2 * stats.nct.sf(stats.t.ppf(1 - alpha, n - 1), n - 1, shift) - 1
        return bool(min(detect, confirm) >= POWER)

    return _fewest(decides)


def seeds_to_place(difference: Difference, margin: float, alpha: float = ALPHA) -> int | None:
    """Seeds with which a true difference as large as the estimate is told from `margin`, with 80 % power.

    Beyond it where the 95 % interval lies beyond it, within it by two one-sided tests at `alpha`. None above 1000
    seeds, or where the spread between seeds is not known.
    """
    distance, level = abs(difference.mean) - margin, ALPHA / 2 if abs(difference.mean) > margin else alpha

    def decides(n: int) -> bool:
        shift = abs(distance) * math.sqrt(n) / difference.sd
        return bool(stats.nct.sf(stats.t.ppf(1 - level, n - 1), n - 1, shift) >= POWER)

    return _fewest(decides) if difference.sd > 0 else None


def _fewest(decides: Callable[[int], bool]) -> int | None:
    """The fewest seeds that decide, if that many are no more than 1000."""
    n = 2 + bisect.bisect_left(range(2, MOST_SEEDS + 1), True, key=decides)
    return n if n <= MOST_SEEDS else None


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
    alpha = ALPHA / max(family, 1)
    needed = seeds_to_place(difference, margin, alpha) if detected else seeds_to_decide(difference.sd, margin, alpha)
    return Verdict(word, None if needed is None else max(needed - difference.n, 0))


RULES = (
    ("supported", "a difference in the expected direction was detected (Holm-corrected p at most 0.05); where no "
     "difference was expected, the difference was shown to be smaller than the margin"),
    ("contradicted", "a difference in the opposite direction was detected; where no difference was expected, one was "
     "detected and its whole 95 % interval lies beyond the margin"),
    ("equivalent", "the difference was shown to be smaller than the margin stated before the run (two one-sided t "
     "tests, Holm-corrected), although one was expected"),
    ("undecided", "the data show neither. The seeds it asks for would detect a difference as large as the margin, and "
     "confirm that there is none, with 80 % power, if the spread between seeds stays as it is; where a difference was "
     "detected already, they would tell on which side of the margin it lies, if it is as large as it seems"),
)  # fmt: skip
