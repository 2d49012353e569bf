"""Forecasts without a network, which a network must beat: each from the reports up to its origin alone.

Series are (n, days), origins (n, m) days in them, `ahead` (k,) days after an origin; forecasts are (n, m, k).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy.stats import norm

from ablations.data.sird import Rates
from ablations.forecasting.scores import LEVELS, MEDIAN

FIT_WINDOWS = (3, 5, 7, 10, 14, 21, 28)  # days that an extrapolation may be fitted to
CLASSICAL_DAYS = 28  # that ARIMA and exponential smoothing are fitted to
FLAT_PATHS = 200  # drawn for the spread of the flat median
FIRST_CASES = 1e-4  # the share reported from which on the SIR model is fitted
FITTED_NOISE = 0.1  # the log-deviation of reports that the fit assumes besides that of counting
DAMPING, STEPS = 1e-2, 10  # of the fit
BOUNDS = np.log([[0.01, 0.2, 0.01, 1e-9], [1, 20, 0.95, 0.9]])  # of reported share, R0, mu and the first share
UNINFORMED = np.log([1, 2.4, 1 / 8]), np.array([0, 10.0, 10.0])  # all cases are reported, all rates are possible


def log_share(share: np.ndarray, floor: float) -> np.ndarray:
    """The logarithm of a share or rate; less than the floor counts as the floor."""
    return np.log(np.maximum(share, floor))


def windows(series: np.ndarray, origins: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Values at origin + offset; offsets (k,) -> (n, m, k)."""
    return series[np.arange(len(series))[:, None, None], origins[:, :, None] + offsets]


def extrapolate(
    reported: np.ndarray, origins: np.ndarray, degree: int, window: int, ahead: np.ndarray, floor: float, most: float
) -> np.ndarray:
    """A polynomial fitted to the log of the last `window` reports, never above `most`.

    Degree 0 with a window of one day is persistence, 1 is log-linear, 2 log-quadratic.
    """
    past = np.arange(1 - window, 1)
    weights = np.vander(ahead, degree + 1) @ np.linalg.pinv(np.vander(past, degree + 1))
    with np.errstate(over="ignore"):
        return np.exp(windows(log_share(reported, floor), origins, past) @ weights.T).clip(max=most)


def seasonal_naive(reported: np.ndarray, origins: np.ndarray, ahead: np.ndarray, season: int) -> np.ndarray:
    """What was reported on the same day of the season before."""
    return windows(reported, origins, ahead - season)


def flat_median(reported: np.ndarray, origins: np.ndarray, ahead: np.ndarray, seed: int = 0) -> np.ndarray:
    """Quantiles (n, m, k, 23) of the baseline of the CDC's hubs: the last report, and around it the spread of sums of
    changes drawn from all changes so far and their negatives, not below 0."""
    generator = np.random.default_rng(seed)
    changes = np.diff(reported, axis=1)
    forecast = np.empty((*origins.shape, len(ahead), len(LEVELS)))
    for row, column in np.ndindex(*origins.shape):
        origin = origins[row, column]
        drawn = generator.choice(changes[row, :origin], (FLAT_PATHS, ahead.max()))
        signs = generator.choice([-1.0, 1.0], drawn.shape)
        paths = (drawn * signs).cumsum(axis=1)[:, ahead - 1]
        spread = np.quantile(np.concatenate([paths, -paths]), LEVELS, axis=0).T
        forecast[row, column] = (reported[row, origin] + spread).clip(min=0)
    forecast[..., MEDIAN] = np.take_along_axis(reported, origins, axis=1)[:, :, None]
    return forecast


def with_intervals(
    forecast: np.ndarray, earlier: np.ndarray, came: np.ndarray, floor: float, most: float
) -> np.ndarray:
    """Quantiles (n, m, k, 23) of a forecast of points: its own log errors on other epidemics, where it forecast
    `earlier` and then came `came` (n', m', k), tell how it spreads so far ahead. The median stays the point."""
    errors = (log_share(came, floor) - log_share(earlier, floor)).reshape(-1, came.shape[-1])
    spread = np.quantile(errors, LEVELS, axis=0).T
    spread -= spread[:, MEDIAN : MEDIAN + 1]
    return np.exp(log_share(forecast, floor)[..., None] + spread).clip(max=most)


def classical(series: np.ndarray, ahead: np.ndarray, floor: float, most: float) -> Mapping[str, np.ndarray]:
    """Quantiles (k, 23) of one series by ARIMA(2, 1, 0), by Burg's method, and by simple exponential smoothing, both
    fitted by statsmodels to logs of its last four weeks and with the spread of the fitted model.

    Of 20 orders and 8 kinds of smoothing, over windows of 14 to 260 days and logs or roots, these were among the best
    in error and score on the validation epidemics of seeds that no preset runs. A drift or trend, which continues the
    growth before the peak beyond it, made errors two to three times as large.
    """
    from statsmodels.tsa.arima.model import ARIMA
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    logarithm = pd.Series(log_share(series[-CLASSICAL_DAYS:], floor))
    known, steps = len(logarithm), int(ahead.max())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits that do not converge are judged by their forecasts as all others
        arima = ARIMA(logarithm, order=(2, 1, 0), enforce_stationarity=False).fit(method="burg").get_forecast(steps)
        ets = ETSModel(logarithm).fit(disp=False).get_prediction(known, known + steps - 1)
    return {
        "arima": _log_normal(arima.predicted_mean, arima.var_pred_mean, ahead, most),
        "ets": _log_normal(ets.predicted_mean, ets.forecast_variance, ahead, most),
    }


def _log_normal(mean: pd.Series, variance: pd.Series, ahead: np.ndarray, most: float) -> np.ndarray:
    """Quantiles (k, 23) of what has logs of that mean and variance on the days to come."""
    centre, deviation = (np.asarray(moment)[ahead - 1, None] for moment in (mean, np.sqrt(variance)))
    with np.errstate(over="ignore"):
        return np.exp(centre + deviation * norm.ppf(LEVELS)).clip(max=most)


def sir(
    reported: np.ndarray,
    origins: np.ndarray,
    ahead: np.ndarray,
    population: int,
    known: tuple[Rates, np.ndarray] | None = None,
    prior: tuple[np.ndarray, np.ndarray] = UNINFORMED,
) -> np.ndarray:
    """The daily SIR map fitted to all reports since the first cases, then continued.

    Fitted are R0, the removal rate and the infectious share on the first day; with `known` rates and reported shares
    (n,) of each epidemic, only the last, which is the oracle. `prior` is the mean and deviation of (log reported share,
    log R0, log mu), which the first cases alone cannot tell; the reported share is fitted where its deviation is not 0.
    By damped least squares on logs (Levenberg 1944), for all epidemics and origins at once.
    """
    shape, (mean, spread) = origins.shape, prior
    first = np.minimum((reported >= FIRST_CASES).argmax(axis=1)[:, None], origins)
    length = (origins - first).ravel() + 1
    days = np.arange(length.max())
    taken = np.minimum(first.reshape(-1, 1) + days, reported.shape[1] - 1)
    seen = np.take_along_axis(reported.repeat(shape[1], axis=0), taken, axis=1)
    seen = log_share(seen, 1 / population)
    deviation = np.sqrt(FITTED_NOISE**2 + np.exp(-seen) / population)
    weight = (days < length[:, None]) / deviation
    if known is None:
        fixed, free = np.tile(mean, (len(length), 1)), 4 if spread[0] else 3
    else:
        rates, share = known
        fixed, free = np.log(np.stack([share, rates.beta / rates.mu, rates.mu], axis=1)).repeat(shape[1], axis=0), 1
    start = np.column_stack([fixed, seen[:, 0] - fixed[:, 0]])

    def residuals(theta: np.ndarray) -> np.ndarray:
        misfit = weight * (_log_reported(theta, len(days)) - seen)
        return np.concatenate([misfit, (theta[:, :3] - mean) / np.maximum(spread, 1e-9)], axis=1)

    theta = _fit(residuals, start, free)
    total = int(length.max() + ahead.max())
    course = np.exp(_log_reported(theta, total))
    return np.take_along_axis(course, length[:, None] - 1 + ahead, axis=1).reshape(*shape, len(ahead))


def _log_reported(theta: np.ndarray, days: int) -> np.ndarray:
    """Log shares (n, days) of the daily map with rows (log reported share, log R0, log mu, log of the first share)."""
    share, r0, mu, infectious = np.exp(theta.T)
    beta, susceptible = r0 * mu, 1 - infectious
    course = np.empty((len(theta), days))
    for day in range(days):
        course[:, day] = infectious
        infections = np.minimum(beta * susceptible * infectious, susceptible)
        susceptible, infectious = susceptible - infections, infectious + infections - mu * infectious
    return np.log(np.maximum(share[:, None] * course, 1e-12))


def _fit(residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, free: int) -> np.ndarray:
    """Rows of parameters that make the squares of the residuals least; only the last `free` columns move."""
    theta, damping = start.copy(), np.full(len(start), DAMPING)
    best = residuals(theta)
    for _ in range(STEPS):
        slopes = []
        for column in range(theta.shape[1] - free, theta.shape[1]):
            moved = theta.copy()
            moved[:, column] += 1e-5
            slopes.append((residuals(moved) - best) / 1e-5)
        jacobian = np.stack(slopes, axis=-1)
        normal = jacobian.transpose(0, 2, 1) @ jacobian
        normal += damping[:, None, None] * normal * np.eye(free) + 1e-9 * np.eye(free)
        step = np.linalg.solve(normal, jacobian.transpose(0, 2, 1) @ best[..., None])[..., 0]
        trial = theta.copy()
        trial[:, -free:] -= step.clip(-1, 1)
        trial = trial.clip(*BOUNDS)
        found = residuals(trial)
        better = (found**2).sum(axis=1) < (best**2).sum(axis=1)
        theta, best = np.where(better[:, None], trial, theta), np.where(better[:, None], found, best)
        damping = np.where(better, damping / 4, damping * 8)
    return theta
