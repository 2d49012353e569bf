"""Claims on the scores: the identities of the weighted interval score, and coverage by counting."""

import numpy as np
import pytest
from scipy import stats

from ablations.forecasting.scores import (
    LEVELS,
    MEDIAN,
    NOMINAL,
    QUANTILES,
    coverage,
    naive_scale,
    pinball,
    weighted_interval_score,
)


def random_forecasts(count=200):
    generator = np.random.default_rng(0)
    return np.sort(generator.gamma(2, 3, (count, 23)), axis=1), generator.gamma(2, 3, count)


def test_the_quantiles_are_the_23_of_the_hubs():
    assert len(QUANTILES) == 23
    assert QUANTILES[:4] == (0.01, 0.025, 0.05, 0.1)
    assert QUANTILES[MEDIAN] == 0.5
    np.testing.assert_allclose(LEVELS + LEVELS[::-1], 1)
    assert {round(nominal, 3) for nominal in NOMINAL} >= {0.5, 0.95, 0.98}


def test_the_score_is_twice_the_mean_pinball_loss():
    forecast, truth = random_forecasts()
    np.testing.assert_allclose(
        weighted_interval_score(forecast, truth).total, 2 * pinball(forecast, truth).mean(axis=1)
    )


def test_the_score_is_the_sum_over_intervals_of_bracher_et_al():
    forecast, truth = random_forecasts(50)
    expected = 0.5 * np.abs(truth - forecast[:, MEDIAN])
    for k in range(11):
        alpha, lower, upper = 2 * QUANTILES[k], forecast[:, k], forecast[:, 22 - k]
        misses = np.maximum(lower - truth, 0) + np.maximum(truth - upper, 0)
        expected += alpha / 2 * (upper - lower + 2 / alpha * misses)
    np.testing.assert_allclose(weighted_interval_score(forecast, truth).total, expected / 11.5)


def test_a_forecast_that_is_only_a_median_scores_its_absolute_error():
    medians, truth = np.array([3.0, 5.0, 5.0]), np.array([4.0, 5.0, 1.0])
    score = weighted_interval_score(np.repeat(medians[:, None], 23, axis=1), truth)
    np.testing.assert_allclose(score.total, np.abs(medians - truth))
    np.testing.assert_allclose(score.dispersion, 0)
    np.testing.assert_allclose(score.overprediction, [0, 0, 4])
    np.testing.assert_allclose(score.underprediction, [1, 0, 0])


def test_the_score_is_the_sum_of_its_parts_which_are_never_negative():
    score = weighted_interval_score(*random_forecasts())
    np.testing.assert_allclose(score.total, score.dispersion + score.overprediction + score.underprediction)
    assert min(part.min() for part in score) >= 0


def test_true_quantiles_cover_as_stated_and_score_best():
    truth = np.random.default_rng(1).normal(size=40_000)
    true, wide, shifted = (
        np.tile(stats.norm.ppf(LEVELS) * s + m, (len(truth), 1)) for s, m in ((1, 0), (2, 0), (1, 1))
    )
    np.testing.assert_allclose(coverage(true, truth).mean(axis=0), NOMINAL, atol=0.01)
    best = weighted_interval_score(true, truth).total.mean()
    assert best < min(weighted_interval_score(other, truth).total.mean() for other in (wide, shifted))
    assert best == pytest.approx(2 * stats.norm.pdf(stats.norm.ppf(LEVELS)).mean(), rel=0.02)  # in expectation


def test_the_scaled_error_of_the_naive_forecast_is_one():
    series = np.random.default_rng(0).random((3, 40))
    assert np.abs(series[:, 1:] - series[:, :-1]).mean() / naive_scale(series) == pytest.approx(1)
