"""Which design choices of a small recurrent network help to forecast an epidemic around its peak?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ablations.data import sird
from ablations.design import Factor, Hypothesis, Level, Preset, Response, Study
from ablations.models import Forecaster

DAYS = 260
LONGEST_HISTORY = 28  # every origin has this many days behind it, whatever the level of `history`
AROUND_PEAK = 14  # days before and after the peak that count as around it
AHEAD = 7  # days, of the primary response
LATEST_PEAK = 180
EARLIEST_PEAK = LONGEST_HISTORY - 1 + AHEAD + AROUND_PEAK
VISIBLE = 0.001  # the reported share from which on training asks for forecasts: smaller ones are mostly noise
POPULATION = 100_000
FIT_WINDOWS = (3, 5, 7, 10, 14, 21, 28)  # days that an extrapolation may be fitted to
SHOWN_EPIDEMICS = 4
SHOWN_ORIGINS = (-14, -7, 0, 7)


@dataclass(frozen=True)
class Epidemics:
    """Daily infectious shares, each (n, days): as simulated and as reported."""

    truth: np.ndarray
    reported: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: slice) -> Epidemics:
        return Epidemics(self.truth[rows], self.reported[rows])

    @property
    def peak_day(self) -> np.ndarray:
        return self.truth.argmax(axis=1)

    @property
    def peak_height(self) -> np.ndarray:
        return self.truth.max(axis=1)


@dataclass(frozen=True)
class Scaler:
    """Log shares made comparable: mean 0 and deviation 1 over the epidemics it was fitted to."""

    mean: float
    deviation: float

    @classmethod
    def fit(cls, epidemics: Epidemics) -> Scaler:
        logarithm = log_share(epidemics.reported)
        return cls(float(logarithm.mean()), float(logarithm.std()))

    def scale(self, logarithm: np.ndarray) -> np.ndarray:
        return (logarithm - self.mean) / self.deviation


def log_share(share: np.ndarray) -> np.ndarray:
    """The logarithm of a share; less than one case counts as one."""
    return np.log(np.maximum(share, 1 / POPULATION))


def simulate(count: int, noise: float, generator: np.random.Generator) -> Epidemics:
    """Epidemics slow enough that all forecasts around their peak have the longest history behind them."""
    rates = sird.draw_rates(4 * count, generator)
    truth = sird.daily_map(rates, DAYS).infectious
    peak_day = truth.argmax(axis=1)
    truth = truth[(peak_day >= EARLIEST_PEAK) & (peak_day <= LATEST_PEAK)][:count]
    return Epidemics(truth, sird.observe(truth, POPULATION, noise, generator))


def windows(series: np.ndarray, origins: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Values at origin + offset; series (n, days), origins (n, m), offsets (k,) -> (n, m, k)."""
    return series[np.arange(len(series))[:, None, None], origins[:, :, None] + offsets]


def extrapolate(reported: np.ndarray, origins: np.ndarray, degree: int, window: int, ahead: np.ndarray) -> np.ndarray:
    """Forecasts (n, m, len(ahead)) by a polynomial fitted to the log share of the last `window` days, at most 1.

    Degree 0 with a window of one day is persistence, 1 is log-linear, 2 log-quadratic.
    """
    past = np.arange(1 - window, 1)
    weights = np.vander(ahead, degree + 1) @ np.linalg.pinv(np.vander(past, degree + 1))
    return np.exp(windows(log_share(reported), origins, past) @ weights.T).clip(max=1)


def error_around_peak(forecast: np.ndarray, epidemics: Epidemics) -> float:
    """Mean absolute error of forecasts (n, 29) for the days around the peak, over the peak height."""
    days = epidemics.peak_day[:, None] + np.arange(-AROUND_PEAK, AROUND_PEAK + 1)
    truth = np.take_along_axis(epidemics.truth, days, axis=1)
    return float((np.abs(forecast - truth) / epidemics.peak_height[:, None]).mean())


def extrapolation_error(epidemics: Epidemics, degree: int, window: int) -> float:
    """The primary response of an extrapolation."""
    forecast = extrapolate(epidemics.reported, peak_origins(epidemics), degree, window, np.array([AHEAD]))
    return error_around_peak(forecast[:, :, 0], epidemics)


def peak_origins(epidemics: Epidemics) -> np.ndarray:
    """Origins (n, 29) whose forecast 7 days ahead falls around the peak."""
    return epidemics.peak_day[:, None] + np.arange(-AROUND_PEAK, AROUND_PEAK + 1) - AHEAD


class EpidemicTask:
    """Forecasts of the log infectious share, as its change since the last report, from the last `history` reports.

    Histories are noisy reports; what is forecast, in training as in tests, is the simulated share itself.
    """

    per_model: ClassVar[frozenset[str]] = frozenset({"noise"})

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        if not 1 <= settings["history"] <= LONGEST_HISTORY:
            raise ValueError(f"history {settings['history']} is not possible; allowed are 1 to {LONGEST_HISTORY} days")
        self.settings = settings
        generator = np.random.default_rng(seed)
        train, validation = settings["train_epidemics"], settings["validation_epidemics"]
        epidemics = simulate(train + validation + settings["test_epidemics"], settings["noise"], generator)
        self.train = epidemics[:train]
        self.validation = epidemics[train : train + validation]
        self.test = epidemics[train + validation :]
        self.split = (self.train.truth, self.validation.truth, self.test.truth)
        self.scaler = Scaler.fit(self.train)
        self.past = np.arange(1 - settings["history"], 1)
        self.future = np.arange(1, settings["horizon"] + 1)
        origins = self._training_origins(generator)
        self.train_inputs = self._inputs(self.train, origins)
        self.train_targets = self._targets(self.train, origins)

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        return "1"

    def model(self) -> torch.nn.Module:
        chosen = {name: self.settings[name] for name in ("cell", "hidden_size", "depth", "dense", "horizon")}
        return Forecaster(**chosen)

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.smooth_l1_loss(outputs, targets)

    def validate(self, predict: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        origins = peak_origins(self.validation)
        outputs = predict(self._inputs(self.validation, origins))
        forecast = self._shares(outputs, self.validation, origins)
        return {
            "validation_loss": float(self.loss(outputs, self._targets(self.validation, origins))),
            "validation_error": error_around_peak(forecast[:, :, AHEAD - 1], self.validation),
        }

    def evaluate(
        self, predict: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        test = self.test
        origins = peak_origins(test)
        forecast = self._shares(predict(self._inputs(test, origins)), test, origins)
        before = test.peak_day[:, None] + np.arange(-AROUND_PEAK, 0)
        course = self._shares(predict(self._inputs(test, before)), test, before)
        forecast_peak_day = before + 1 + course.argmax(axis=2)
        height = test.peak_height[:, None]
        responses = {
            "error": error_around_peak(forecast[:, :, AHEAD - 1], test),
            "peak_day_error": float(np.abs(forecast_peak_day - test.peak_day[:, None]).mean()),
            "peak_height_error": float((np.abs(course.max(axis=2) - height) / height).mean()),
        }
        return responses | self._references(), self._shown(predict)

    def _references(self) -> dict[str, float]:
        """Errors of forecasts without learning; fits use the window that serves their kind best in validation."""
        references = {"persistence_error": extrapolation_error(self.test, 0, 1)}
        for degree, name in ((1, "log_linear_error"), (2, "log_quadratic_error")):
            errors = {window: extrapolation_error(self.validation, degree, window) for window in FIT_WINDOWS}
            references[name] = extrapolation_error(self.test, degree, min(errors, key=lambda window: errors[window]))
        return references

    def _shown(self, predict: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, np.ndarray]:
        """Arrays of the figure `forecasts`: shares of the population, of the first test epidemics."""
        shown = self.test[:SHOWN_EPIDEMICS]
        origins = shown.peak_day[:, None] + np.array(SHOWN_ORIGINS)
        arrays = {
            "day": np.arange(DAYS),
            "truth": shown.truth,
            "observed": shown.reported,
            "origin": np.array(SHOWN_ORIGINS),
            "peak_day": shown.peak_day,
            "forecast": self._shares(predict(self._inputs(shown, origins)), shown, origins),
        }
        return {name: array.astype(np.float32) for name, array in arrays.items()}

    def _training_origins(self, generator: np.random.Generator) -> np.ndarray:
        """Origins (n, origins_per_epidemic) drawn among the days on which the epidemic is visible in the reports."""
        possible = (self.train.reported >= VISIBLE).astype(float)
        possible[:, : LONGEST_HISTORY - 1] = 0
        possible[:, DAYS - self.settings["horizon"] :] = 0
        draws = generator.random((len(self.train), self.settings["origins_per_epidemic"]))
        cumulative = possible.cumsum(axis=1)
        return (cumulative[:, None, :] > draws[:, :, None] * cumulative[:, None, -1:]).argmax(axis=2)

    def _inputs(self, epidemics: Epidemics, origins: np.ndarray) -> torch.Tensor:
        """Scaled histories (n * m, history, 1)."""
        history = windows(log_share(epidemics.reported), origins, self.past)
        return torch.from_numpy(self.scaler.scale(history)).float().reshape(-1, len(self.past), 1)

    def _targets(self, epidemics: Epidemics, origins: np.ndarray) -> torch.Tensor:
        """Change of the log share since the last report, (n * m, horizon)."""
        change = windows(log_share(epidemics.truth), origins, self.future) - self._last(epidemics, origins)
        return torch.from_numpy(change).float().reshape(-1, len(self.future))

    def _shares(self, outputs: torch.Tensor, epidemics: Epidemics, origins: np.ndarray) -> np.ndarray:
        """Forecast shares (n, m, horizon) from the network's outputs, at most 1."""
        change = outputs.double().numpy().reshape(*origins.shape, len(self.future))
        return np.exp(self._last(epidemics, origins) + change).clip(max=1)

    def _last(self, epidemics: Epidemics, origins: np.ndarray) -> np.ndarray:
        return windows(log_share(epidemics.reported), origins, np.array([0]))


_SETTINGS = {
    "train_epidemics": 400,
    "validation_epidemics": 100,
    "test_epidemics": 100,
    "origins_per_epidemic": 10,
    "noise": 0.1,
    "horizon": 28,
    "hidden_size": 32,
    "epochs": 20,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "clip": 1.0,
}
MATTERS = 0.01  # of the peak height: a smaller difference would change nobody's plans

STUDY = Study(
    name="epidemic",
    title="Forecasting an epidemic around its peak",
    question="Which design choices of a small recurrent network help to forecast an epidemic around its peak?",
    version="1",
    factors=(
        Factor(
            "cell",
            "recurrent cell",
            (
                Level("gru", {"cell": "gru"}),
                Level(
                    "lstm",
                    {"cell": "lstm"},
                    Hypothesis(
                        trying="an LSTM in place of the GRU",
                        because="two weeks of history are too short for a separate cell state to pay",
                        expects="equal",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "rnn",
                    {"cell": "rnn"},
                    Hypothesis(
                        trying="a plain tanh RNN in place of the GRU",
                        because="without gates the last noisy reports overwrite what earlier ones told of the trend",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "history",
            "days of history",
            (
                Level("14", {"history": 14}),
                Level(
                    "7",
                    {"history": 7},
                    Hypothesis(
                        trying="one week of history in place of two",
                        because="a week of noisy reports shows how fast the epidemic grows, but not that growth slows",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "28",
                    {"history": 28},
                    Hypothesis(
                        trying="four weeks of history in place of two",
                        because="noise averages out over more reports and the slowing of growth shows",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "depth",
            "recurrent layers",
            (
                Level("1", {"depth": 1}),
                Level(
                    "2",
                    {"depth": 2},
                    Hypothesis(
                        trying="a second recurrent layer",
                        because="the first can smooth the reports and the second follow how their growth changes",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "dense",
            "added dense layers",
            (
                Level("0", {"dense": 0}),
                Level(
                    "1",
                    {"dense": 1},
                    Hypothesis(
                        trying="a dense layer between the last hidden state and the output",
                        because="the course after the peak bends, which a linear output cannot read from one state",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
    ),
    responses=(
        Response("error", "7-day-ahead error around the peak", "accuracy", "lower", "%"),
        Response("peak_day_error", "error of the peak day", "accuracy", "lower", "days"),
        Response("peak_height_error", "error of the peak height", "accuracy", "lower", "%"),
        Response("epochs_to_converge", "epochs to converge", "convergence", "lower"),
        Response("parameters", "parameters", "complexity", "lower"),
        Response("flops", "arithmetic operations per forecast", "complexity", "lower"),
        Response("peak_memory", "memory of a training step", "complexity", "lower", "bytes"),
        Response("seconds_per_step", "time per training step", "complexity", "lower", "s"),
    ),
    presets={
        "smoke": Preset(_SETTINGS | {"train_epidemics": 40, "test_epidemics": 20, "epochs": 3}, seeds=2),
        "quick": Preset(_SETTINGS, seeds=16),
        "full": Preset(
            _SETTINGS
            | {"train_epidemics": 4000, "validation_epidemics": 500, "test_epidemics": 1000, "hidden_size": 64}
            | {"epochs": 40, "batch_size": 256},
            seeds=30,
        ),
    },
    task=EpidemicTask,
    figures=("forecasts",),
)
