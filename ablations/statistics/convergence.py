"""How fast runs learn: area under the learning curve, time to the baseline's target, and the share that reached it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ablations.statistics.paired import ALPHA

WITHIN = 0.05  # of the baseline's best, relative: where its target lies


@dataclass(frozen=True)
class Target:
    """The value of a curve's measure that counts as learnt."""

    measure: str
    better: str  # "higher" or "lower"
    value: float

    def reached(self, values: pd.Series) -> pd.Series:
        return values >= self.value if self.better == "higher" else values <= self.value


def baseline_target(curves: pd.DataFrame, measure: str, better: str) -> Target:
    """What the baseline reaches: the median over its runs of each one's best value, relaxed by 5 %.

    `curves` holds the baseline's learning curves, with the column `key` of their run. A measure that shall be high is
    a share of right answers: of it, the share of wrong answers is relaxed.
    """
    best = curves.groupby("key")[measure].agg("max" if better == "higher" else "min").median()
    relaxed = 1 - (1 - best) * (1 + WITHIN) if better == "higher" else best + WITHIN * abs(best)
    return Target(measure, better, float(relaxed))


def time_to_target(curves: pd.DataFrame, target: Target, clock: str) -> pd.Series:
    """The first `clock` (`epoch` or `step`) at which each run's curve reached the target; infinite if it never did.

    Indexed by the runs' key.
    """
    arrival = curves[clock].where(target.reached(curves[target.measure]), np.inf).astype(float)
    return arrival.groupby(curves["key"]).min()


def area_under_curve(curves: pd.DataFrame, measure: str) -> pd.Series:
    """Mean height of each run's curve over its epochs (trapezoids), in the measure's unit; indexed by key."""
    ordered = curves.sort_values(["key", "epoch"])
    runs, key = ordered.groupby("key"), ordered["key"]
    steps = runs["epoch"].diff()
    areas = (steps * (ordered[measure] + runs[measure].shift()) / 2).groupby(key).sum(min_count=1)
    return (areas / steps.groupby(key).sum()).fillna(runs[measure].first())


def share_reached(times: pd.Series, watched: pd.Series) -> pd.DataFrame:
    """Kaplan-Meier's estimate of the share of runs that have reached the target, by time, with its 95 % interval.

    `times` are infinite for runs that did not; `watched` says until when each was trained. Columns: time, share, low,
    high. The interval is Clopper and Pearson's for as many runs as the runs still followed stand for (Cutler and
    Ederer's effective sample size): exact if all were watched equally long. The first row is time 0.
    """
    reached = np.isfinite(times.to_numpy(float))
    seen = np.where(reached, times, watched).astype(float)
    still = stats.ecdf(stats.CensoredData.right_censored(seen, ~reached)).sf
    before = np.concatenate([[1.0], still.probabilities[:-1]])
    followed = np.array([(seen >= time).sum() for time in still.quantiles])
    runs = followed / np.maximum(before, np.finfo(float).tiny)
    arrived = runs * (1 - still.probabilities)
    low = stats.beta.ppf(ALPHA / 2, arrived, runs - arrived + 1)
    high = stats.beta.ppf(1 - ALPHA / 2, arrived + 1, runs - arrived)
    frame = pd.DataFrame(
        {
            "time": still.quantiles,
            "share": 1 - still.probabilities,
            "low": np.where(arrived > 0, low, 0.0),
            "high": np.where(runs - arrived > 1e-9, high, 1.0),
        }
    )
    none = float(stats.beta.ppf(1 - ALPHA / 2, 1, len(seen)))  # what no arrival among so many runs leaves possible
    start = pd.DataFrame({"time": [0.0], "share": [0.0], "low": [0.0], "high": [none]})
    return pd.concat([start, frame], ignore_index=True)
