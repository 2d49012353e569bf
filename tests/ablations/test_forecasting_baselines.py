"""Claims on the forecasts without a network: known errors, exact recovery where their model holds, honest intervals."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from ablations.data import sird
from ablations.data.series import BOARDING_SCHOOL, BOARDING_SCHOOL_BOYS
from ablations.forecasting import baselines
from ablations.forecasting.scores import LEVELS, MEDIAN, coverage

AHEAD = np.arange(1, 29)
AROUND = np.arange(-14, 15)


def wave(r0=2.5, mu=0.1, days=260, initial=1e-3):
    rates = sird.Rates(*(np.array([value]) for value in (r0 * mu, mu, 0.98, initial)))
    return rates, sird.daily_map(rates, days).infectious


@pytest.mark.parametrize(("degree", "error"), [(0, 0.212), (1, 0.146), (2, 0.019)])
def test_noise_free_extrapolations_have_the_known_errors(degree, error):
    """Of the ODE with beta 0.25 and mu 0.1, 7 days ahead around the peak, through the last degree + 1 days."""
    rates = sird.Rates(*(np.array([value]) for value in (0.25, 0.1, 0.98, 1e-3)))
    course = sird.ode(rates, 260).infectious
    days = course.argmax() + AROUND
    forecast = baselines.extrapolate(course, days[None] - 7, degree, degree + 1, np.array([7]), 1e-9, 1.0)[0, :, 0]
    assert (np.abs(forecast - course[0, days]) / course.max()).mean() == pytest.approx(error, abs=5e-4)


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("window", [3, 14])
def test_an_extrapolation_continues_its_own_curve_exactly(degree, window):
    series = np.exp(np.polyval([-0.002, 0.1, -6][2 - degree :], np.arange(60)))[None]
    forecast = baselines.extrapolate(series, np.array([[40]]), degree, window, np.array([1, 7]), 1e-9, 1.0)
    np.testing.assert_allclose(forecast[0, 0], series[0, [41, 47]], rtol=1e-9)


def test_an_extrapolation_never_exceeds_the_most():
    growing = np.exp(np.linspace(-9, -1, 30))[None]
    assert baselines.extrapolate(growing, np.array([[29]]), 1, 7, np.array([28]), 1e-9, 1.0)[0, 0, 0] == 1


def test_windows_hold_the_values_at_origin_plus_offset():
    series = np.arange(20).reshape(2, 10)
    taken = baselines.windows(series, np.array([[3, 5], [4, 9]]), np.array([-2, 0]))
    assert taken.tolist() == [[[1, 3], [3, 5]], [[12, 14], [17, 19]]]


@pytest.mark.parametrize("known", [False, True])
def test_the_sir_fit_recovers_an_epidemic_of_its_own_equations(known):
    rates, course = wave()
    origins = course.argmax() + np.array([[-10, 0, 10]])
    forecast = baselines.sir(course, origins, AHEAD, 10**9, (rates, np.ones(1)) if known else None)
    came = baselines.windows(course, origins, AHEAD)
    assert np.abs(forecast - came).max() / course.max() < 0.02


def test_the_oracle_beats_the_sir_fit_and_the_fit_beats_extrapolation_on_noisy_reports():
    generator = np.random.default_rng(0)
    rates = sird.draw_rates(20, generator, r0=(1.8, 3))
    course = sird.daily_map(rates, 320).infectious
    reported = sird.observe(course, 100_000, 0.1, generator)
    origins = course.argmax(axis=1)[:, None] + np.array([-7, 0])
    came, height = baselines.windows(course, origins, AHEAD), course.max(axis=1)[:, None, None]

    def error(forecast):
        return (np.abs(forecast - came) / height)[:, :, 6].mean()

    oracle = error(baselines.sir(reported, origins, AHEAD, 100_000, (rates, np.ones(20))))
    fit = error(baselines.sir(reported, origins, AHEAD, 100_000))
    quadratic = error(baselines.extrapolate(reported, origins, 2, 14, AHEAD, 1e-5, 1.0))
    assert oracle < 0.02 < fit < quadratic


def test_where_few_cases_are_reported_the_oracle_knows_it_and_the_fit_learns_it():
    rates, course = wave()
    origins = course.argmax() + np.array([[0, 10]])
    came = baselines.windows(0.3 * course, origins, AHEAD)

    def error(**options):
        return np.abs(baselines.sir(0.3 * course, origins, AHEAD, 10**9, **options) - came).max() / came.max()

    assert error(known=(rates, np.array([0.3]))) < 0.01
    assert error(prior=(np.log([0.5, 2.4, 1 / 8]), np.array([0.5, 0.3, 0.4]))) < error() / 3


def test_the_ode_fitted_to_the_boarding_school_has_its_published_rates():
    """From one boy the day before the first count, Murray (Mathematical Biology, 1989) found r = 0.00218 per boy and
    day and a = 0.440 per day, which is an R0 of 3.8 and 2.3 days in bed."""
    counts = np.array(BOARDING_SCHOOL)

    def misfit(logarithms):
        beta, mu = np.exp(logarithms)
        rates = sird.Rates(*(np.array([value]) for value in (beta, mu, 1.0, 1 / BOARDING_SCHOOL_BOYS)))
        return BOARDING_SCHOOL_BOYS * sird.ode(rates, 15).infectious[0, 1:] - counts

    beta, mu = np.exp(least_squares(misfit, np.log([1.0, 0.3])).x)
    assert beta / BOARDING_SCHOOL_BOYS == pytest.approx(0.00218, rel=0.02)
    assert mu == pytest.approx(0.440, rel=0.02)


def test_the_sir_fit_foresees_the_decline_in_the_boarding_school():
    course = np.array([BOARDING_SCHOOL]) / BOARDING_SCHOOL_BOYS
    origins, ahead = np.array([[8]]), np.arange(1, 6)
    forecast = baselines.sir(course, origins, ahead, BOARDING_SCHOOL_BOYS)[0, 0]
    persistence = np.abs(course[0, 8] - course[0, 9:14]).mean()
    assert np.abs(forecast - course[0, 9:14]).mean() < persistence / 3
    assert (np.diff(forecast) < 0).all()


def test_no_forecast_depends_on_what_comes_after_its_origin():
    _, course = wave()
    origins, changed = np.array([[40, 60]]), course.copy()
    changed[:, 61:] = 0.5
    for forecast in (
        lambda series: baselines.extrapolate(series, origins, 2, 14, AHEAD, 1e-5, 1.0),
        lambda series: baselines.sir(series, origins, AHEAD, 100_000),
        lambda series: baselines.flat_median(series, origins, AHEAD),
        lambda series: baselines.seasonal_naive(series, origins, np.arange(1, 5), season=30),
    ):
        np.testing.assert_array_equal(forecast(course), forecast(changed))


def test_seasonal_naive_repeats_the_last_season():
    season = np.random.default_rng(0).random(52)
    series = np.tile(season, 3)[None]
    forecast = baselines.seasonal_naive(series, np.array([[110]]), np.arange(1, 5), season=52)
    np.testing.assert_array_equal(forecast[0, 0], series[0, 111:115])


def test_the_flat_median_stays_at_the_last_report_with_a_spread_that_grows_as_a_random_walk():
    walk = 1000 + np.random.default_rng(0).normal(size=(1, 400)).cumsum(axis=1)
    forecast = baselines.flat_median(walk, np.array([[399]]), np.array([1, 4, 16]))[0, 0]
    np.testing.assert_allclose(forecast[:, MEDIAN], walk[0, 399])
    width = forecast[:, np.searchsorted(LEVELS, 0.975)] - forecast[:, np.searchsorted(LEVELS, 0.025)]
    np.testing.assert_allclose(width, 2 * 1.96 * np.sqrt([1, 4, 16]), rtol=0.25)
    assert (np.diff(forecast, axis=-1) >= 0).all()


def test_intervals_from_earlier_errors_cover_what_comes_when_errors_stay_alike():
    generator = np.random.default_rng(0)
    earlier, came, forecast, comes = np.exp(0.2 * generator.normal(size=(4, 2000, 1, 2)))
    quantiles = baselines.with_intervals(forecast, earlier, came, 1e-9, np.inf)
    np.testing.assert_array_equal(quantiles[..., MEDIAN], forecast)
    inside = coverage(quantiles, comes).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(inside, 1 - 2 * LEVELS[:MEDIAN], atol=0.03)


def test_arima_continues_steady_growth_and_smoothing_stays_where_it_ended():
    series = 1e-3 * np.exp(0.1 * np.arange(40))
    forecast = baselines.classical(series, np.array([1, 7]), 1e-9, 1.0)
    np.testing.assert_allclose(forecast["arima"][:, MEDIAN], 1e-3 * np.exp(0.1 * np.array([40, 46])), rtol=0.05)
    np.testing.assert_allclose(forecast["ets"][:, MEDIAN], series[-1], rtol=0.01)


def test_arima_and_smoothing_spread_as_the_walk_that_they_were_fitted_to():
    walk = np.exp(0.1 * np.random.default_rng(0).normal(size=400).cumsum() - 6)
    for name, forecast in baselines.classical(walk, np.array([1, 4, 16]), 1e-9, 1.0).items():
        low, high = np.log(forecast[:, [LEVELS.searchsorted(0.025), LEVELS.searchsorted(0.975)]]).T
        np.testing.assert_allclose(high - low, 2 * 1.96 * 0.1 * np.sqrt([1, 4, 16]), rtol=0.35, err_msg=name)
