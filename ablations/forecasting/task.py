"""The task of forecasting epidemics around their peaks: windows, scaling, training loss, and what is measured.

Where the epidemics come from, and which forecasts without a network they allow, is for the studies to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from ablations.forecasting.baselines import FIT_WINDOWS, classical, extrapolate, log_share, windows, with_intervals
from ablations.forecasting.scores import LEVELS, MEDIAN, NOMINAL, coverage, naive_scale, weighted_interval_score
from ablations.models import Forecaster, Quantiles

SHOWN_EPIDEMICS = 4
COMPARED = ("error", "wis", "coverage_50", "coverage_95")  # recorded of forecasts without a network too
MODEL_SETTINGS = {  # no forecast without a network depends on them
    *("cell", "history", "hidden_size", "depth", "dense", "bidirectional", "strategy", "keep_bias", "observed"),
    *("leakage", "origins_per_epidemic", "epochs", "batch_size", "learning_rate", "schedule", "clip"),
}
Predict = Callable[[torch.Tensor], Quantiles]
Forecasts = Mapping[str, np.ndarray]  # by name, (n, m, horizon) or with their quantiles (n, m, horizon, 23)
Results = tuple[dict[str, float], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Panel:
    """Epidemics in time: `truth` (n, days) is to be forecast; `observed` (n, channels, days) is what is seen, the truth
    as reported first. Peaks are looked for on the days from `earliest` to `latest`."""

    truth: np.ndarray
    observed: np.ndarray
    earliest: int = 0
    latest: int | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: slice) -> Panel:
        return Panel(self.truth[rows], self.observed[rows], self.earliest, self.latest)

    @property
    def reported(self) -> np.ndarray:
        return self.observed[:, 0]

    @property
    def peak_day(self) -> np.ndarray:
        last = None if self.latest is None else self.latest + 1
        return self.earliest + self.truth[:, self.earliest : last].argmax(axis=1)

    @property
    def peak_height(self) -> np.ndarray:
        return np.take_along_axis(self.truth, self.peak_day[:, None], axis=1)[:, 0]

    def joined(self, *others: Panel) -> Panel:
        """The epidemics of all."""
        panels = (self, *others)
        truth, observed = (np.concatenate([getattr(p, name) for p in panels]) for name in ("truth", "observed"))
        return Panel(truth, observed, self.earliest, self.latest)


@dataclass(frozen=True)
class Scaler:
    """Logs made comparable: each channel has mean 0 and deviation 1 over the epidemics it was fitted to."""

    mean: np.ndarray  # (channels,)
    deviation: np.ndarray

    @classmethod
    def fit(cls, observed: np.ndarray, floor: float) -> Scaler:
        logarithm = log_share(observed, floor)
        return cls(logarithm.mean(axis=(0, 2)), logarithm.std(axis=(0, 2)))

    def scale(self, logarithm: np.ndarray) -> np.ndarray:
        """Logs (..., channels)."""
        return (logarithm - self.mean) / self.deviation


def interval_scores(forecast: np.ndarray, came: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Means over all forecasts (..., horizon, 23) of what came (..., horizon), and their course over the days ahead."""
    errors = np.abs(forecast[..., MEDIAN] - came)
    score = weighted_interval_score(forecast, came)
    inside = coverage(forecast, came).reshape(-1, len(NOMINAL)).mean(axis=0)
    responses = {
        "mae": errors.mean(),
        "rmse": np.sqrt((errors**2).mean()),
        "wis": score.total.mean(),
        "dispersion": score.dispersion.mean(),
        "overprediction": score.overprediction.mean(),
        "underprediction": score.underprediction.mean(),
        "coverage_50": inside[np.argmin(np.abs(NOMINAL - 0.5))],
        "coverage_95": inside[np.argmin(np.abs(NOMINAL - 0.95))],
        "miscoverage": np.abs(inside - NOMINAL).mean(),
    }
    by_ahead = score.total.reshape(-1, came.shape[-1]).mean(axis=0)
    return responses, {"nominal_coverage": NOMINAL, "coverage": inside, "wis_by_ahead": by_ahead}


class ForecastTask:
    """Quantiles of the log share on each day ahead, as its change since the last report, from the last `history`
    reports. Histories are reports; what is forecast, in training as in tests, is the truth of the panel."""

    per_model: ClassVar[frozenset[str]] = frozenset({"noise", "keep_bias", "leakage"})
    ahead: ClassVar[int]  # days, of the primary response
    around: ClassVar[int]  # days before and after the peak that count as around it
    longest_history: ClassVar[int]  # every origin has this many days behind it, whatever the level of `history`
    shown_origins: ClassVar[tuple[int, ...]]
    floor: float  # less counts as this much
    most: float  # more is never forecast
    step: str = "day"  # of the series
    visible: float  # from which on training asks for forecasts: less is mostly noise
    _known: ClassVar[dict[Any, Results]] = {}

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        if not 1 <= settings["history"] <= self.longest_history:
            raise ValueError(
                f"history {settings['history']} is not possible; allowed are 1 to {self.longest_history} days"
            )
        if settings["horizon"] < self.ahead:
            raise ValueError(f"horizon {settings['horizon']} is too short; at least {self.ahead} days are scored")
        self.settings, self.seed = settings, seed
        generator = np.random.default_rng(seed)
        self.train, self.validation, self.test = self.draw(generator)
        self.split = (self.train.truth, self.validation.truth, self.test.truth)
        learned = self.leaked(generator) if settings["leakage"] != "none" else self.train
        everything = self.train.joined(self.validation, self.test)
        self.scaler = Scaler.fit((everything if settings["leakage"] == "scaling" else self.train).observed, self.floor)
        self.past = np.arange(1 - settings["history"], 1)
        self.future = np.arange(1, settings["horizon"] + 1)
        origins = self._training_origins(learned, np.random.default_rng([seed, 1]))
        self.train_inputs = self.inputs(learned, origins)
        self.train_targets = self.targets(learned, origins)

    def draw(self, generator: np.random.Generator) -> tuple[Panel, Panel, Panel]:
        """Training, validation and test epidemics; sets `floor`, `most` and `visible` from the first."""
        raise NotImplementedError

    def leaked(self, generator: np.random.Generator) -> Panel:
        """The epidemics that training learns from where it may see what it must not, as many as in a clean split."""
        raise NotImplementedError

    def references(self, panel: Panel, origins: np.ndarray) -> Forecasts:
        """Forecasts without a network."""
        raise NotImplementedError

    def model(self) -> torch.nn.Module:
        names = (
            "cell",
            "hidden_size",
            "depth",
            "dense",
            "horizon",
            "history",
            "bidirectional",
            "strategy",
            "keep_bias",
        )
        return Forecaster(**{name: self.settings[name] for name in names}, inputs=self.train_inputs.shape[-1])

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs

    def loss(self, outputs: Quantiles, targets: torch.Tensor) -> torch.Tensor:
        """The weighted interval score of the scaled logs."""
        return outputs.loss(targets)

    @cached_property
    def validation_inputs(self) -> torch.Tensor:
        return self.inputs(self.validation, self.origins(self.validation))

    @cached_property
    def validation_targets(self) -> torch.Tensor:
        return self.targets(self.validation, self.origins(self.validation))

    def validate(self, outputs: Quantiles) -> dict[str, float]:
        medians = self.shares(outputs.median[..., None], self.validation, self.origins(self.validation))
        return {"validation_error": self.error(medians[..., 0], self.validation)}

    def evaluate(self, predict: Predict) -> Results:
        test, origins = self.test, self.origins(self.test)
        forecast = self.forecast(predict, test, origins)
        responses, arrays = self.measure(forecast, test)
        reference_responses, reference_arrays = self._reference_results()
        return responses | reference_responses, arrays | reference_arrays | self._shown(predict)

    def origins(self, panel: Panel) -> np.ndarray:
        """Origins (n, m) whose forecast `ahead` days on falls around the peak: for a week, days -21 to +7."""
        return panel.peak_day[:, None] + self.origin_days

    @property
    def origin_days(self) -> np.ndarray:
        return np.arange(-self.around, self.around + 1) - self.ahead

    def error(self, medians: np.ndarray, panel: Panel) -> float:
        """Mean absolute error `ahead` days on around the peak, over the peak height; medians (n, m, horizon)."""
        came = windows(panel.truth, self.origins(panel), np.array([self.ahead]))
        return float(
            (np.abs(medians[:, :, self.ahead - 1 : self.ahead] - came) / panel.peak_height[:, None, None]).mean()
        )

    def measure(self, forecast: np.ndarray, panel: Panel) -> Results:
        """Responses of forecasts (n, m, horizon, 23) from all origins, and what figures show of them.

        All errors are over the peak height, averaged over epidemics, origins and days ahead; `error` and the peak's are
        of medians, and those of the peak of forecasts from before it.
        """
        height = panel.peak_height[:, None, None]
        came = windows(panel.truth, self.origins(panel), self.future)
        responses, arrays = interval_scores(forecast / height[..., None], came / height)
        scale = naive_scale(self.train.reported / self.train.peak_height[:, None])
        days, heights = self.peak_errors(forecast[..., MEDIAN], panel)
        recent = days.shape[1] - self.around
        responses |= {
            "error": self.error(forecast[..., MEDIAN], panel),
            "mase": responses["mae"] / scale,
            "peak_day_error": days[:, recent:].mean(),
            "peak_height_error": heights[:, recent:].mean(),
        }
        arrays |= {
            "before_peak": self.origin_days[: days.shape[1]],
            "peak_day_error_by_origin": days.mean(axis=0),
            "peak_height_error_by_origin": heights.mean(axis=0),
        }
        return {n: float(v) for n, v in responses.items()}, {n: v.astype(np.float32) for n, v in arrays.items()}

    def peak_errors(self, medians: np.ndarray, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        """How far the highest day of the forecast lies from the peak, in days, and in height over the peak's, each
        (n, k) for the k origins before the peak."""
        before = self.origin_days[self.origin_days < 0]
        course = medians[:, : len(before)]
        day, height = before + 1 + course.argmax(axis=2), panel.peak_height[:, None]
        return np.abs(day), np.abs(course.max(axis=2) - height) / height

    def forecast(self, predict: Predict, panel: Panel, origins: np.ndarray) -> np.ndarray:
        """The network's quantiles (n, m, horizon, 23)."""
        return self.shares(predict(self.inputs(panel, origins)).values(), panel, origins)

    def inputs(self, panel: Panel, origins: np.ndarray) -> torch.Tensor:
        """Scaled histories (n * m, history, channels)."""
        channels = range(panel.observed.shape[1])
        history = np.stack([windows(panel.observed[:, c], origins, self.past) for c in channels], axis=-1)
        scaled = self.scaler.scale(log_share(history, self.floor))
        return torch.from_numpy(scaled).float().reshape(-1, len(self.past), len(channels))

    def targets(self, panel: Panel, origins: np.ndarray) -> torch.Tensor:
        """Scaled changes of the log since the last report, (n * m, horizon)."""
        change = windows(log_share(panel.truth, self.floor), origins, self.future) - self._last(panel, origins)
        return torch.from_numpy(change / self.scaler.deviation[0]).float().reshape(-1, len(self.future))

    def shares(self, changes: torch.Tensor, panel: Panel, origins: np.ndarray) -> np.ndarray:
        """What scaled changes of the log (n * m, horizon, k) say, as shares (n, m, horizon, k)."""
        change = self.scaler.deviation[0] * changes.double().numpy().reshape(*origins.shape, *changes.shape[1:])
        with np.errstate(over="ignore"):
            return np.exp(self._last(panel, origins)[..., None] + change).clip(max=self.most)

    def extrapolations(self, panel: Panel, origins: np.ndarray) -> Forecasts:
        """Persistence, and log-linear and log-quadratic fits over the window that serves each best in validation."""
        chosen = {"persistence": (0, 1)}
        for name, degree in (("log_linear", 1), ("log_quadratic", 2)):
            errors = {
                w: self.error(self._extrapolated(self.validation, degree, w), self.validation) for w in self.fitted
            }
            chosen[name] = degree, min(errors, key=lambda window: errors[window])
        return {
            name: extrapolate(panel.reported, origins, *how, self.future, self.floor, self.most)
            for name, how in chosen.items()
        }

    @property
    def fitted(self) -> list[int]:
        return [window for window in FIT_WINDOWS if window <= self.longest_history]

    def _extrapolated(self, panel: Panel, degree: int, window: int) -> np.ndarray:
        origins = self.origins(panel)
        return extrapolate(panel.reported, origins, degree, window, self.future, self.floor, self.most)

    def _reference_results(self) -> Results:
        """Measures of the forecasts without a network, computed once for all runs of a process with the same data."""
        data = {name: value for name, value in self.settings.items() if name not in MODEL_SETTINGS}
        key = (type(self), repr(sorted(data.items())), self.seed)
        if key not in self._known:
            self._known[key] = self._compare()
        return self._known[key]

    def _compare(self) -> Results:
        origins = self.origins(self.test)
        earlier = self.origins(self.validation)[:, ::3]  # a third of the origins tell as much of how errors spread
        came = windows(self.validation.truth, earlier, self.future)
        in_validation = self.references(self.validation, earlier)
        responses, arrays = self._classical_responses(), {}
        for name, forecast in self.references(self.test, origins).items():
            if forecast.ndim == 3:
                forecast = with_intervals(forecast, in_validation[name], came, self.floor, self.most)
            measured, shown = self.measure(forecast, self.test)
            responses |= {f"{name}_{response}": measured[response] for response in COMPARED}
            for array in ("wis_by_ahead", "peak_day_error_by_origin", "peak_height_error_by_origin"):
                arrays[f"{array}_{name}"] = shown[array]
        return responses, arrays

    def _classical_responses(self) -> dict[str, float]:
        """Responses of ARIMA and exponential smoothing, which are fitted one by one: on some of the test forecasts,
        from all origins alike."""
        count, origins = self.settings["classical_forecasts"], self.origins(self.test)
        taken = np.arange(count) % len(self.test), np.arange(count) * origins.shape[1] // max(count, 1)
        height = self.test.peak_height[taken[0], None]
        came = windows(self.test.truth, origins, self.future)[taken] / height
        forecasts = [
            classical(self.test.reported[row, : origins[row, column] + 1], self.future, self.floor, self.most)
            for row, column in zip(*taken, strict=True)
        ]
        responses: dict[str, float] = {}
        for name in forecasts[0] if forecasts else ():
            quantiles = np.stack([forecast[name] for forecast in forecasts]) / height[..., None]
            measured, _ = interval_scores(quantiles, came)
            measured["error"] = np.abs(quantiles[:, self.ahead - 1, MEDIAN] - came[:, self.ahead - 1]).mean()
            responses |= {f"{name}_{response}": float(measured[response]) for response in COMPARED}
        return responses

    def _shown(self, predict: Predict) -> dict[str, np.ndarray]:
        """Arrays of the figure `forecasts`, of the first test epidemics."""
        shown = self.test[:SHOWN_EPIDEMICS]
        origins = shown.peak_day[:, None] + np.array(self.shown_origins)
        forecast = self.forecast(predict, shown, origins)
        arrays = {
            "day": np.arange(shown.truth.shape[1]),
            "truth": shown.truth,
            "observed": shown.reported,
            "origin": np.array(self.shown_origins),
            "peak_day": shown.peak_day,
            "forecast": forecast[..., MEDIAN],
            "forecast_50": forecast[..., np.isin(LEVELS, (0.25, 0.75))],
            "forecast_95": forecast[..., np.isin(LEVELS, (0.025, 0.975))],
        }
        return {name: array.astype(np.float32) for name, array in arrays.items()} | {"step": np.array(self.step)}

    def _training_origins(self, learned: Panel, generator: np.random.Generator) -> np.ndarray:
        """Origins (n, origins_per_epidemic) drawn among the days on which an epidemic is visible in its reports, or
        among all days if it never is."""
        possible = (learned.reported >= self.visible).astype(float)
        usable = np.zeros_like(possible)
        usable[:, self.longest_history - 1 : possible.shape[1] - self.settings["horizon"]] = 1
        possible = np.where((possible * usable).any(axis=1, keepdims=True), possible * usable, usable)
        draws = generator.random((len(learned), self.settings["origins_per_epidemic"]))
        cumulative = possible.cumsum(axis=1)
        return (cumulative[:, None, :] > draws[:, :, None] * cumulative[:, None, -1:]).argmax(axis=2)

    def _last(self, panel: Panel, origins: np.ndarray) -> np.ndarray:
        """The log of the last report, (n, m, 1)."""
        return windows(log_share(panel.reported, self.floor), origins, np.array([0]))
