"""What many conditions say together: interquartile mean, performance profiles, and Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from ablations.statistics.paired import ALPHA

FEWEST_CONDITIONS = 8  # below, name each condition instead of summing them up
RESAMPLES = 2000


def interquartile_mean(scores: pd.DataFrame) -> tuple[float, float, float]:
    """Mean of the middle half of all scores, with a 95 % percentile interval from resampling seeds within conditions.

    `scores` has a row per condition and a column per seed, on one scale (Agarwal et al., NeurIPS 2021). Raises
    ValueError below eight conditions.
    """
    values = _many(scores)
    resampled = _resample(values, np.random.default_rng(0)).reshape(RESAMPLES, -1)
    low, high = np.quantile(stats.trim_mean(resampled, 0.25, axis=1), [ALPHA / 2, 1 - ALPHA / 2])
    return float(stats.trim_mean(values, 0.25, axis=None)), float(low), float(high)


def performance_profile(scores: pd.DataFrame, thresholds: Sequence[float], better: str = "higher") -> pd.DataFrame:
    """Share of runs whose score is at least (or, where lower is better, at most) each threshold.

    Columns: threshold, share, low, high, the interval from resampling seeds within conditions. `scores` as in
    `interquartile_mean`; raises ValueError below eight conditions.
    """
    values, levels = _many(scores), np.asarray(thresholds, dtype=float)
    sign = 1.0 if better == "higher" else -1.0
    passed = sign * values[:, :, None] >= sign * levels  # (conditions, seeds, thresholds)
    shares = passed.mean(axis=(0, 1))
    draws = np.random.default_rng(0).integers(values.shape[1], size=(RESAMPLES // 10, *values.shape))
    resampled = np.stack([np.take_along_axis(passed, draw[:, :, None], axis=1).mean(axis=(0, 1)) for draw in draws])
    low, high = np.quantile(resampled, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return pd.DataFrame({"threshold": levels, "share": shares, "low": low, "high": high})


def pareto_front(points: pd.DataFrame, cost: str, value: str, better: str = "higher") -> pd.DataFrame:
    """Rows that no other row beats in both columns: none costs less and is at least as good; by rising cost.

    Of rows equal in both, the first stands for all.
    """
    sign = 1.0 if better == "higher" else -1.0
    finite = points[np.isfinite(points[cost].astype(float)) & np.isfinite(points[value].astype(float))]
    order = np.lexsort((-sign * finite[value].to_numpy(float), finite[cost].to_numpy(float)))
    ranked = finite.iloc[order]
    gain = sign * ranked[value].astype(float)
    return ranked[gain > gain.cummax().shift(fill_value=-math.inf)]


def _many(scores: pd.DataFrame) -> np.ndarray:
    values = scores.to_numpy(float)
    if len(values) < FEWEST_CONDITIONS:
        raise ValueError(
            f"{len(values)} conditions are too few to be summed up in one number, which needs {FEWEST_CONDITIONS}; "
            "compare them one by one with paired_difference"
        )
    if not np.isfinite(values).all():
        raise ValueError("scores hold values that are not finite; leave out the seeds that a condition lacks")
    return values


def _resample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Seeds drawn anew within each condition: (RESAMPLES, conditions, seeds)."""
    draws = rng.integers(values.shape[1], size=(RESAMPLES, *values.shape))
    return np.take_along_axis(values[None].repeat(RESAMPLES, 0), draws, axis=2)
