"""Two levels compared on the same seeds: differences, ratios and medians with their intervals and exact tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from scipy import special, stats

ALPHA = 0.05  # of every claim; Holm keeps it for the whole family of a study
MOST_EXACT = 12  # seeds up to which all sign flips are enumerated; beyond, as many are sampled
FEWEST_FOR_BOOTSTRAP = 20  # below, bootstrap intervals cover less than they say: BCa 83 % at n = 5, 90 % at n = 10
RESAMPLES = 9999

Values = Sequence[float] | pd.Series | np.ndarray


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


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same examples: those only one of them gets right, and the exact p value."""

    only_level: int
    only_baseline: int
    p: float


def smallest_exact_p(n: int) -> float:
    """The least p value that a sign-flip or sign test of `n` pairs can give: all of them on one side, 2 / 2^n."""
    return min(2.0 / 2.0**n, 1.0)


def mean_interval(values: Values) -> tuple[float, float, float]:
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
    return difference_of(level.sub(baseline))


def difference_of(differences: Values) -> Difference:
    """The same for differences already taken within each seed."""
    x = _finite(differences)
    mean, low, high = mean_interval(x)
    sd = _spread(x)
    p = float(stats.ttest_1samp(x, 0.0).pvalue) if sd > 0 else math.nan
    return Difference(mean, low, high, len(x), sd, p, _sign_flip_p(x))


def paired_ratio(level: pd.Series, baseline: pd.Series) -> Difference:
    """Level over baseline minus one (0.12 is 12 % more), as a geometric mean over seeds with its t interval.

    `sd` and the p values are those of the logarithms.
    """
    logs = difference_of(np.log(level.div(baseline).to_numpy()))
    mean, low, high = (math.expm1(x) for x in (logs.mean, logs.low, logs.high))
    return replace(logs, mean=mean, low=low, high=high)


def paired_median(level: pd.Series, baseline: pd.Series) -> Difference:
    """Median of level minus baseline, for times that may be infinite: a run that never arrives stays in the median.

    The interval is that of the order statistics, at least 95 % whatever the distribution, and NaN below six pairs; the
    p values are those of the sign test, ties left out; `sd` is NaN. Pairs in which neither arrives count as ties.
    """
    pairs = pd.DataFrame({"level": level, "baseline": baseline}).dropna().astype(float)
    both_never = np.isinf(pairs["level"]) & np.isinf(pairs["baseline"])
    x = np.sort((pairs["level"] - pairs["baseline"]).mask(both_never, 0.0).to_numpy())
    n, moved = len(x), x[x != 0]
    cut = int(stats.binom.ppf(ALPHA / 2, n, 0.5)) if n else 0  # values left out at each end
    low, high = (float(x[cut - 1]), float(x[n - cut])) if cut else (math.nan, math.nan)
    p = float(stats.binomtest(int((moved > 0).sum()), len(moved)).pvalue) if len(moved) else 1.0 if n else math.nan
    return Difference(_median(x), low, high, n, math.nan, p, p)


def bootstrap_interval(level: pd.Series, baseline: pd.Series) -> tuple[float, float]:
    """95 % BCa bootstrap interval (Efron 1987) of the mean paired difference; the same data give the same interval.

    Raises ValueError below 20 pairs, where it covers too little: the t interval of `paired_difference` serves there.
    """
    x = _finite(level.sub(baseline))
    if len(x) < FEWEST_FOR_BOOTSTRAP:
        raise ValueError(
            f"{len(x)} seed pairs are too few for a bootstrap interval, which needs {FEWEST_FOR_BOOTSTRAP}; "
            "use the t interval of paired_difference"
        )
    if not _spread(x) > 0:
        return math.nan, math.nan
    found = stats.bootstrap((x,), np.mean, method="BCa", n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def hedges(level: pd.Series, baseline: pd.Series) -> float:
    """Mean paired difference in units of the seeds' standard deviation, pooled over both levels and unbiased.

    The correction is Hedges' with the degrees of freedom of correlated samples, 2 (n - 1) / (1 + r^2) (Cousineau and
    Goulet-Pelletier, 2021). NaN below three pairs or without spread.
    """
    x, y = _pairs(level, baseline)
    pooled = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2) if len(x) > 2 else math.nan
    if not pooled > 0:
        return math.nan
    r = float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0
    freedom = 2 * (len(x) - 1) / (1 + r * r)
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return correction * float((x - y).mean()) / pooled


def probability_of_improvement(level: pd.Series, baseline: pd.Series, better: str) -> tuple[float, float, float]:
    """Share of seeds on which the level is better, ties counted half, with an interval of at least 95 % coverage.

    The interval is Clopper and Pearson's: from the wins alone at its lower end, with all ties won at its upper end.
    """
    x, y = _pairs(level, baseline)
    n, wins, ties = len(x), int(((x > y) if better == "higher" else (x < y)).sum()), int((x == y).sum())
    if n == 0:
        return math.nan, math.nan, math.nan
    return (wins + ties / 2) / n, proportion_interval(wins, n)[0], proportion_interval(wins + ties, n)[1]


def proportion_interval(count: int, n: int) -> tuple[float, float]:
    """Exact 95 % interval (Clopper and Pearson, 1934) of the probability behind `count` of `n`."""
    if n == 0:
        return math.nan, math.nan
    low = stats.beta.ppf(ALPHA / 2, count, n - count + 1) if count else 0.0
    high = stats.beta.ppf(1 - ALPHA / 2, count + 1, n - count) if count < n else 1.0
    return float(low), float(high)


def binomial_error(share: float, examples: int) -> float:
    """Standard error of an accuracy measured on that many independent test examples: the noise of the test set."""
    return math.sqrt(share * (1 - share) / examples) if examples else math.nan


def mcnemar(level_right: np.ndarray, baseline_right: np.ndarray) -> McNemar:
    """McNemar's exact test; both arguments say of the same examples, in the same order, whether they were right.

    Raises ValueError if their shapes differ.
    """
    if level_right.shape != baseline_right.shape:
        raise ValueError(
            f"predictions of {level_right.shape} and {baseline_right.shape} examples are not paired; McNemar's test "
            "needs both models' answers to the same test examples"
        )
    only_level = int((level_right & ~baseline_right).sum())
    only_baseline = int((baseline_right & ~level_right).sum())
    discordant = only_level + only_baseline
    p = float(stats.binomtest(only_level, discordant).pvalue) if discordant else 1.0
    return McNemar(only_level, only_baseline, p)


def _pairs(level: pd.Series, baseline: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Values of the seeds that have a finite one on both sides."""
    pairs = pd.DataFrame({"level": level, "baseline": baseline}).to_numpy(float)
    x, y = pairs[np.isfinite(pairs).all(axis=1)].T
    return x, y


def _median(x: np.ndarray) -> float:
    """Median of sorted values that may be infinite; NaN where it falls between the two infinities."""
    return float(x[(len(x) - 1) // 2] + x[len(x) // 2]) / 2 if len(x) else math.nan


def _sign_flip_p(x: np.ndarray) -> float:
    if len(x) == 0:
        return math.nan
    if not x.any():
        return 1.0
    if len(x) <= MOST_EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(x))[:, None] >> np.arange(len(x)) & 1)
    else:
        signs = _sampled_signs(len(x))
    return float(np.mean(np.abs(signs @ x) >= abs(x.sum()) * (1 - 1e-9)))


@cache
def _sampled_signs(n: int) -> np.ndarray:
    """The pattern as observed and 4096 random ones, (4097, n)."""
    drawn = np.random.default_rng(0).choice([-1.0, 1.0], (2**MOST_EXACT, n))
    return np.vstack([np.ones(n), drawn])


def _spread(x: np.ndarray) -> float:
    """Standard deviation; NaN for one value, and exactly zero where only rounding differs."""
    if len(x) < 2:
        return math.nan
    sd = float(x.std(ddof=1))
    return sd if sd > 1e-12 * float(np.abs(x).max()) else 0.0


def _finite(values: Values) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    return x[np.isfinite(x)]
