"""Which design choices of a small network help to forecast real seasons of a disease around their peaks?

The data are weekly or daily series of your own (`--data FILE --date COLUMN --value COLUMN --group COLUMN`) or named
ones; see `ablations/data/series.py`. The last whole seasons are the tests of every run, so that seeds differ in weights
and in the order of training alone, and a difference that is sure over seeds holds for these seasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ablations.data import series, tell_repairs
from ablations.design import DataError, Expected, Factor, Hypothesis, Level, Preset, Response, Study
from ablations.forecasting.baselines import flat_median, seasonal_naive
from ablations.forecasting.task import SHOWN_EPIDEMICS, Forecasts, ForecastTask, Panel, Predict, Results


class SurveillanceTask(ForecastTask):
    """Seasons of one or several groups; a step is a week or a day, as the data have it."""

    per_model = frozenset({"keep_bias", "leakage"})
    ahead, around, longest_history = 2, 6, 26
    shown_origins: ClassVar[tuple[int, ...]] = (-6, -3, 0, 3)
    visible, most = 0.0, np.inf

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        """A hash of the content; what was repaired or left out is told here, once, when runs are planned."""
        tell_repairs(_seasons(settings).repairs)
        return f"1 {series.content_hash(settings['data'])}"

    @cached_property
    def seasons(self) -> series.Seasons:
        return _seasons(self.settings)

    def draw(self, generator: np.random.Generator) -> tuple[Panel, Panel, Panel]:
        """The last seasons are the tests, those before them the validation; all groups of a season stay together."""
        validation, test = self.settings["validation_seasons"], self.settings["test_seasons"]
        count = len(self.seasons.names) - validation - test
        if min(validation, test) < 1 or count < 1:
            raise DataError(
                f"{len(self.seasons.names)} seasons cannot give {validation} for validation and {test} for tests, at "
                "least 1 each, and leave one to train on; set fewer validation_seasons or test_seasons"
            )
        self.step = self.seasons.step
        learned = self.seasons.values[:count]
        self.floor = float(learned[learned > 0].min()) / 2
        parts = np.split(self.seasons.values, [count, count + validation])
        train, validated, tested = (self._panel(part) for part in parts)
        return train, validated, tested

    def leaked(self, generator: np.random.Generator) -> Panel:
        """The test seasons take the places of the oldest training seasons."""
        if self.settings["leakage"] == "scaling":
            return self.train
        return self.test.joined(self.train[len(self.test) :])[: len(self.train)]

    def references(self, panel: Panel, origins: np.ndarray) -> Forecasts:
        """Extrapolations, the same weeks of the season before, and the flat median of the CDC's hubs."""
        return {
            **self.extrapolations(panel, origins),
            "seasonal_naive": seasonal_naive(panel.reported, origins, self.future, self.seasons.lead),
            "flat_median": flat_median(panel.reported, origins, self.future),
        }

    def evaluate(self, predict: Predict) -> Results:
        """Besides, the names of the test seasons, of the season and group of each test, and what was repaired."""
        responses, arrays = super().evaluate(predict)
        groups = self.seasons.groups
        tested = self.seasons.names[-self.settings["test_seasons"] :]
        each = [f"{season} {group}" if len(groups) > 1 else season for season in tested for group in groups]
        told = {"tested": tested, "epidemic": each[:SHOWN_EPIDEMICS], "repaired": self.seasons.repairs}
        return responses, arrays | {name: np.array(words, dtype=str) for name, words in told.items()}

    def _panel(self, seasons: np.ndarray) -> Panel:
        """One row per season and group (seasons, groups, steps); peaks leave room for the last forecast after them."""
        values = seasons.reshape(-1, seasons.shape[-1])
        latest = values.shape[1] - 1 - (self.around - self.ahead + self.settings["horizon"])
        panel = Panel(values, values[:, None], self.seasons.lead, latest)
        if not panel.peak_height.all():
            empty = int((panel.peak_height == 0).argmax())
            raise DataError(
                f"group {self.seasons.groups[empty % len(self.seasons.groups)]} is 0 for a whole season; there is no "
                "peak to forecast: leave the group out, or the years in which it was not reported"
            )
        return panel


def _seasons(settings: Mapping[str, Any]) -> series.Seasons:
    data = series.load(*(settings[name] for name in ("data", "date", "value", "group")))
    return series.cut(data, lead=round(364 / data.step), first_month=settings["season"])


_SETTINGS = {
    "data": "simulated",
    "date": "",
    "value": "",
    "group": "",
    "season": 7,
    "validation_seasons": 2,
    "test_seasons": 2,
    "origins_per_epidemic": 40,
    "horizon": 4,
    "strategy": "direct",
    "bidirectional": False,
    "keep_bias": None,
    "observed": "infectious",
    "dense": 0,
    "clip": 1.0,
    "classical_forecasts": 26,
    "epochs": 30,
    "batch_size": 64,
    "learning_rate": 1e-2,
    "schedule": "one-cycle",
}
MATTERS = 0.02  # of the peak height: seasons differ by far more


def _level(name: str, setting: str, value: object, trying: str, because: str, expects: Expected) -> Level:
    return Level(name, {setting: value}, Hypothesis(trying, because, expects, MATTERS))


STUDY = Study(
    name="surveillance",
    title="Forecasting real seasons of a disease",
    question="Which design choices of a small network help to forecast real seasons of a disease around their peaks?",
    version="2",
    factors=(
        Factor(
            "cell",
            "recurrent cell",
            (
                Level("gru", {"cell": "gru"}),
                _level(
                    "lstm",
                    "cell",
                    "lstm",
                    "an LSTM in place of the GRU",
                    "a quarter of a year is too short for a separate cell state to pay",
                    "equal",
                ),
                _level(
                    "rnn",
                    "cell",
                    "rnn",
                    "a plain tanh RNN in place of the GRU",
                    "a dozen seasons are too few to learn what gates are good for",
                    "equal",
                ),
                _level(
                    "mlp",
                    "cell",
                    "mlp",
                    "one dense layer on the whole window in place of the GRU",
                    "it must learn for each week apart what a recurrent network learns once for all",
                    "worse",
                ),
            ),
        ),
        Factor(
            "history",
            "steps of history",
            (
                Level("13", {"history": 13}),
                _level(
                    "4",
                    "history",
                    4,
                    "four steps of history in place of thirteen",
                    "they show whether a season rises, but not when it began to",
                    "worse",
                ),
                _level(
                    "26",
                    "history",
                    26,
                    "half a year of history in place of a quarter",
                    "the months before a season tell little of its course",
                    "equal",
                ),
            ),
        ),
        Factor(
            "hidden_size",
            "hidden units",
            (
                Level("16", {"hidden_size": 16}),
                _level(
                    "4",
                    "hidden_size",
                    4,
                    "a quarter of the hidden units",
                    "a dozen seasons hold little that more units could learn without overfitting",
                    "equal",
                ),
                _level("64", "hidden_size", 64, "four times the hidden units", "they overfit a dozen seasons", "worse"),
            ),
        ),
        Factor(
            "depth",
            "recurrent layers",
            (
                Level("1", {"depth": 1}),
                _level("2", "depth", 2, "a second recurrent layer", "there is little data to learn it from", "equal"),
            ),
        ),
        Factor(
            "leakage",
            "leak from test to training",
            (
                Level("none", {"leakage": "none"}),
                _level(
                    "windows",
                    "leakage",
                    "windows",
                    "windows of the tested seasons in training, as a random split of windows does",
                    "seasons differ so much that to have seen one is worth more than any design",
                    "better",
                ),
                _level(
                    "scaling",
                    "leakage",
                    "scaling",
                    "scaling with the mean and deviation of all seasons, tests included",
                    "two numbers tell next to nothing of any one season",
                    "equal",
                ),
            ),
        ),
    ),
    responses=(
        Response("error", "2-step-ahead error around the peak", "accuracy", "lower", "%"),
        Response("wis", "weighted interval score", "accuracy", "lower", "%"),
        Response("miscoverage", "gap between stated and true coverage", "accuracy", "lower", "%"),
        Response("peak_day_error", "error of the peak's step", "accuracy", "lower", "steps"),
        Response("epochs_to_converge", "epochs to converge", "convergence", "lower"),
        Response("parameters", "parameters", "complexity", "lower"),
        Response("seconds_per_step", "time per training step", "complexity", "lower", "s"),
    ),
    presets={
        "smoke": Preset(_SETTINGS | {"epochs": 2, "classical_forecasts": 2}, seeds=2),
        "quick": Preset(_SETTINGS, seeds=16),
        "full": Preset(_SETTINGS | {"epochs": 100, "classical_forecasts": 104}, seeds=30),
    },
    task=SurveillanceTask,
    figures=("forecasts", "peak_by_origin", "score_by_horizon", "coverage"),
)
