"""Scores of forecasts that are quantiles, as the forecast hubs of the CDC compute them.

Forecasts are (..., 23), ascending, at the levels `QUANTILES`; what came is (...).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

QUANTILES = (0.01, 0.025, *(round(0.05 * i, 2) for i in range(1, 20)), 0.975, 0.99)  # those that the hubs ask for
MEDIAN = len(QUANTILES) // 2
LEVELS = np.array(QUANTILES)
NOMINAL = 1 - 2 * LEVELS[:MEDIAN]  # coverage of the central intervals, the widest first


class IntervalScore(NamedTuple):
    """The weighted interval score, which is the sum of its three parts; all (...), in the unit of what is forecast."""

    total: np.ndarray
    dispersion: np.ndarray
    overprediction: np.ndarray
    underprediction: np.ndarray


def pinball(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The loss of each quantile, (..., 23), which the true quantile makes least in expectation."""
    miss = truth[..., None] - forecast
    return np.maximum(LEVELS * miss, (LEVELS - 1) * miss)


def weighted_interval_score(forecast: np.ndarray, truth: np.ndarray) -> IntervalScore:
    """Bracher et al. 2021, with weights alpha / 2 of the intervals and 1 / 2 of the median. It is twice the mean of the
    pinball losses, and the absolute error of a forecast without spread."""
    lower, median, upper = np.split(forecast, [MEDIAN, MEDIAN + 1], axis=-1)
    truth, weight = truth[..., None], MEDIAN + 0.5
    above, below = np.maximum(median - truth, 0)[..., 0] / 2, np.maximum(truth - median, 0)[..., 0] / 2
    dispersion = ((upper[..., ::-1] - lower) * LEVELS[:MEDIAN]).sum(-1) / weight
    overprediction = (np.maximum(lower - truth, 0).sum(-1) + above) / weight
    underprediction = (np.maximum(truth - upper, 0).sum(-1) + below) / weight
    return IntervalScore(dispersion + overprediction + underprediction, dispersion, overprediction, underprediction)


def coverage(forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether each central interval holds what came, (..., 11), for the coverages `NOMINAL`."""
    lower, upper = forecast[..., :MEDIAN], forecast[..., :MEDIAN:-1]
    return (lower <= truth[..., None]) & (truth[..., None] <= upper)


def naive_scale(series: np.ndarray) -> float:
    """The mean absolute change from day to day of training series (n, days), by which the mean absolute scaled error of
    Hyndman & Koehler 2006 is scaled."""
    return float(np.abs(np.diff(series, axis=-1)).mean())
