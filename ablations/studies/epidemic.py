"""Which design choices of a small network help to forecast an epidemic around its peak?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ablations.data import sird
from ablations.design import DataError, Expected, Factor, Hypothesis, Level, Preset, Response, Study
from ablations.forecasting.baselines import sir
from ablations.forecasting.scores import MEDIAN
from ablations.forecasting.task import Forecasts, ForecastTask, Panel, Predict, Results

DAYS = 260
LATEST_PEAK = 180
R0, UNSEEN_R0 = (1.5, 3.0), (3.0, 4.0)  # of training and of all tests; of the test out of distribution
PROCESSES = ("map", "ode", "chain", "gillespie")
OUTBREAK = 0.05  # the share infected in the end from which on a stochastic epidemic counts as one
DRAWS = 6  # epidemics simulated for each one kept


class EpidemicTask(ForecastTask):
    """Simulated epidemics, of random rates and each at a random time: SIR with deaths, reported with noise."""

    per_model = ForecastTask.per_model | {"least_reported", "weekday", "process", "population"}
    ahead, around, longest_history = 7, 14, 28
    shown_origins: ClassVar[tuple[int, ...]] = (-14, -7, 0, 7)
    visible, most = 0.001, 1.0

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        return "2"

    def draw(self, generator: np.random.Generator) -> tuple[Panel, Panel, Panel]:
        self.floor = 1 / self.settings["population"]
        train, validation = self.settings["train_epidemics"], self.settings["validation_epidemics"]
        count = train + validation + self.settings["test_epidemics"]
        self.rates, courses = simulate(self.settings, count, R0, generator)
        self._apart = np.random.default_rng([self.seed, 2])
        panel = self._observed(courses, generator)
        self.reporting = panel.truth.max(axis=1) / courses.infectious.max(axis=1)
        self.courses = sird.Course(*(course[train + validation :] for course in courses))
        return panel[:train], panel[train : train + validation], panel[train + validation :]

    def leaked(self, generator: np.random.Generator) -> Panel:
        """The test epidemics take the places of training epidemics: as they are ("windows"), or reported anew
        ("epidemics")."""
        if self.settings["leakage"] == "scaling":
            return self.train
        test = self.test
        if self.settings["leakage"] == "epidemics":
            test = self._observed(self.courses, np.random.default_rng([self.seed, 3]))
        return test.joined(self.train[len(test) :])[: len(self.train)]

    def references(self, panel: Panel, origins: np.ndarray) -> Forecasts:
        """Extrapolations, the fitted SIR model, and the oracle that knows each epidemic's rates and reported share."""
        first = self.settings["train_epidemics"]
        learned = self.rates[:first]
        drawn = np.log(np.stack([self.reporting[:first], learned.beta / learned.mu, learned.mu], axis=1))
        first += 0 if panel is self.validation else self.settings["validation_epidemics"]
        rows = slice(first, first + len(panel))
        population, prior = self.settings["population"], (drawn.mean(axis=0), drawn.std(axis=0))
        known = self.rates[rows], self.reporting[rows]
        return {
            **self.extrapolations(panel, origins),
            "sir_fit": sir(panel.reported, origins, self.future, population, prior=prior),
            "oracle": sir(panel.reported, origins, self.future, population, known=known),
        }

    def evaluate(self, predict: Predict) -> Results:
        """Besides, the error on epidemics that spread faster than any in training."""
        responses, arrays = super().evaluate(predict)
        _, courses = simulate(self.settings, self.settings["test_epidemics"], UNSEEN_R0, self._apart)
        unseen = self._observed(courses, self._apart)
        forecast = self.forecast(predict, unseen, self.origins(unseen))
        responses["unseen_error"] = self.error(forecast[..., MEDIAN], unseen)
        names = dict(zip(("susceptible", "infectious", "recovered", "dead"), self.courses, strict=True))
        return responses, arrays | {name: course[:1].astype(np.float32) for name, course in names.items()}

    def _observed(self, courses: sird.Course, generator: np.random.Generator) -> Panel:
        """What is reported of the epidemics; the truth to forecast is the share whose infection would be reported."""
        settings = self.settings
        reporting = generator.uniform(settings["least_reported"], 1, (len(courses.infectious), 1))
        truth = reporting * courses.infectious

        def observe(share: np.ndarray) -> np.ndarray:
            return sird.observe(share, settings["population"], settings["noise"], generator, settings["weekday"])

        channels = [observe(truth)]
        if settings["observed"] == "all":
            removed = [observe(reporting * share) for share in (courses.recovered, courses.dead)]
            channels += [(1 - channels[0] - sum(removed)).clip(min=0), *removed]
        return Panel(truth, np.stack(channels, axis=1))


def simulate(
    settings: Mapping[str, Any], count: int, r0: tuple[float, float], generator: np.random.Generator
) -> tuple[sird.Rates, sird.Course]:
    """Epidemics whose peaks lie between the days on which every forecast around them has its history and its future.

    Each begins on a random day, so that fast ones peak as late as slow ones. Those that would peak after the
    latest day are left out, as are stochastic ones that die out early. Raises `DataError` for an unknown process,
    and if too few epidemics remain.
    """
    process, population = settings["process"], settings["population"]
    if process not in PROCESSES:
        raise DataError(f"process {process!r} is unknown; allowed are {', '.join(PROCESSES)}")
    rates = sird.draw_rates(DRAWS * count if process != "gillespie" else 2 * count, generator, r0)
    if process in ("chain", "gillespie"):
        stochastic = sird.binomial_chain if process == "chain" else sird.gillespie
        course = stochastic(rates, DAYS, population, generator)
    else:
        course = (sird.ode if process == "ode" else sird.daily_map)(rates, DAYS)
    peak_day = course.infectious.argmax(axis=1)
    earliest = EpidemicTask.longest_history - 1 + EpidemicTask.ahead + EpidemicTask.around
    wanted = np.maximum(peak_day, generator.integers(earliest, LATEST_PEAK + 1, len(rates)))
    kept = np.flatnonzero((peak_day <= LATEST_PEAK) & (1 - course.susceptible[:, -1] >= OUTBREAK))[:count]
    if len(kept) < count:
        raise DataError(
            f"only {len(kept)} of {len(rates)} epidemics simulated by {process!r} in a population of {population:,} "
            f"spread and peak by day {LATEST_PEAK}; {count} were asked for. Use fewer epidemics or a larger population"
        )
    late = (wanted - peak_day)[kept, None]
    days = np.arange(DAYS) - late
    begun = [np.take_along_axis(share[kept], days.clip(min=0), axis=1) for share in course]
    before = [1.0, 0.0, 0.0, 0.0]
    return rates[kept], sird.Course(*(np.where(days < 0, b, share) for b, share in zip(before, begun, strict=True)))


_SETTINGS = {
    "train_epidemics": 400,
    "validation_epidemics": 100,
    "test_epidemics": 100,
    "origins_per_epidemic": 10,
    "classical_forecasts": 10,
    "epochs": 8,
    "batch_size": 64,
    "learning_rate": 4e-2,  # and the schedule: by the validation loss of seeds 100 to 107, which no preset runs
    "schedule": "cosine",
}
PEOPLE, TOWN = 100_000, 2_000
MATTERS = 0.01  # of the peak height: a smaller difference would change nobody's plans
_QUICK = {  # what fits into minutes; all else on demand, by name
    "cell": ("gru", "lstm", "rnn", "mlp"),
    "hidden_size": ("32",),
    "bidirectional": ("forward",),
    "strategy": ("direct",),
    "horizon": ("28",),
    "clip": ("1",),
    "keep_bias": ("chance",),
    "process": ("map",),
    "least_reported": ("1",),
    "weekday": ("0",),
}


def _level(name: str, setting: str, value: object, trying: str, because: str, expects: Expected) -> Level:
    return Level(name, {setting: value}, Hypothesis(trying, because, expects, MATTERS))


STUDY = Study(
    name="epidemic",
    title="Forecasting an epidemic around its peak",
    question="Which design choices of a small network help to forecast an epidemic around its peak?",
    version="3",
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
                    "two weeks of history are too short for a separate cell state to pay",
                    "equal",
                ),
                _level(
                    "rnn",
                    "cell",
                    "rnn",
                    "a plain tanh RNN in place of the GRU",
                    "without gates the last noisy reports overwrite what earlier ones told of the trend",
                    "worse",
                ),
                _level(
                    "leaky",
                    "cell",
                    "leaky",
                    "leaky units in place of the GRU",
                    "a fixed leak averages noise away as a gate would, and two weeks need no memory that adapts",
                    "equal",
                ),
                _level(
                    "gru-before",
                    "cell",
                    "gru-before",
                    "the reset gate before the product, as lectures write the GRU",
                    "the two forms differ in what the reset gate hides, which a smooth trend hardly needs hidden",
                    "equal",
                ),
                _level(
                    "esn",
                    "cell",
                    "esn",
                    "an echo state network, whose recurrent part stays random",
                    "random units hold fewer features of the trend than as many that learnt which to hold",
                    "worse",
                ),
                _level(
                    "tcn",
                    "cell",
                    "tcn",
                    "a temporal convolution in place of the GRU",
                    "two weeks fit into its view, and smoothing and differences are what convolutions do",
                    "equal",
                ),
                _level(
                    "mlp",
                    "cell",
                    "mlp",
                    "one dense layer on the whole window in place of the GRU",
                    "it must learn for each day apart what a recurrent network learns once for all",
                    "worse",
                ),
            ),
        ),
        Factor(
            "history",
            "days of history",
            (
                Level("14", {"history": 14}),
                _level(
                    "7",
                    "history",
                    7,
                    "one week of history in place of two",
                    "a week of noisy reports shows how fast the epidemic grows, but not that growth slows",
                    "worse",
                ),
                _level(
                    "28",
                    "history",
                    28,
                    "four weeks of history in place of two",
                    "noise averages out over more reports and the slowing of growth shows",
                    "better",
                ),
            ),
        ),
        Factor(
            "depth",
            "recurrent layers",
            (
                Level("1", {"depth": 1}),
                _level(
                    "2",
                    "depth",
                    2,
                    "a second recurrent layer",
                    "the first can smooth the reports and the second follow how their growth changes",
                    "better",
                ),
            ),
        ),
        Factor(
            "hidden_size",
            "hidden units",
            (
                Level("32", {"hidden_size": 32}),
                _level(
                    "8",
                    "hidden_size",
                    8,
                    "a quarter of the hidden units",
                    "the rates of an epidemic and its stage are few numbers, but estimating them takes more",
                    "worse",
                ),
                _level(
                    "64",
                    "hidden_size",
                    64,
                    "twice the hidden units",
                    "an epidemic has three rates and a stage, which 32 units hold already",
                    "equal",
                ),
            ),
        ),
        Factor(
            "dense",
            "added dense layers",
            (
                Level("0", {"dense": 0}),
                _level(
                    "1",
                    "dense",
                    1,
                    "a dense layer between the last hidden state and the output",
                    "the course after the peak bends, which a linear output cannot read from one state",
                    "better",
                ),
            ),
        ),
        Factor(
            "bidirectional",
            "reading direction",
            (
                Level("forward", {"bidirectional": False}),
                _level(
                    "both",
                    "bidirectional",
                    True,
                    "reading the history in both directions",
                    "the newest reports matter most, and a backward pass reads them first and forgets them",
                    "equal",
                ),
            ),
        ),
        Factor(
            "strategy",
            "way to forecast several days",
            (
                Level("direct", {"strategy": "direct"}),
                _level(
                    "recursive",
                    "strategy",
                    "recursive",
                    "day by day, each forecast fed back",
                    "errors feed on themselves over 28 days",
                    "worse",
                ),
                _level(
                    "encoder-decoder",
                    "strategy",
                    "encoder-decoder",
                    "a decoder that goes on from the last state",
                    "it shares between days what the direct output learns for each day apart",
                    "better",
                ),
            ),
        ),
        Factor(
            "horizon",
            "days forecast",
            (
                Level("28", {"horizon": 28}),
                _level(
                    "7",
                    "horizon",
                    7,
                    "forecasts of one week in place of four",
                    "what the later days teach of the epidemic's stage makes up for their share of the loss",
                    "equal",
                ),
            ),
        ),
        Factor(
            "noise",
            "noise of the reports",
            (
                Level("0.1", {"noise": 0.1}),
                _level(
                    "0",
                    "noise",
                    0.0,
                    "reports with no noise but that of counting",
                    "then two weeks show how growth slows, and the future follows from it",
                    "better",
                ),
                _level(
                    "0.3",
                    "noise",
                    0.3,
                    "three times the noise",
                    "the trend of two weeks drowns in it",
                    "worse",
                ),
            ),
        ),
        Factor(
            "process",
            "process that spreads the epidemic",
            (
                Level("map", {"process": "map", "population": PEOPLE}),
                Level(
                    "ode",
                    {"process": "ode", "population": PEOPLE},
                    Hypothesis(
                        trying="the differential equation in place of its daily steps",
                        because="it peaks a few days elsewhere, but rises and falls in the same way",
                        expects="equal",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "chain",
                    {"process": "chain", "population": PEOPLE},
                    Hypothesis(
                        trying="infections and removals by chance, day by day",
                        because="among a hundred thousand people chance evens out before the peak is near",
                        expects="equal",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "gillespie",
                    {"process": "gillespie", "population": TOWN},
                    Hypothesis(
                        trying="each infection by chance at a time of its own, in a town of 2,000",
                        because="so few cases rise and fall by chance as much as by the epidemic's rates",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "least_reported",
            "least share of cases reported",
            (
                Level("1", {"least_reported": 1.0}),
                _level(
                    "0.2",
                    "least_reported",
                    0.2,
                    "reports of an unknown share of cases, a fifth to all, another in each epidemic",
                    "the level of the reports then no longer tells how many are left to infect",
                    "worse",
                ),
            ),
        ),
        Factor(
            "weekday",
            "weekday effect on reports",
            (
                Level("0", {"weekday": 0.0}),
                _level(
                    "0.3",
                    "weekday",
                    0.3,
                    "reports that are 30 % low on two days of the week and as much too high on the next two",
                    "two weeks show the pattern twice, but it hides part of the trend",
                    "worse",
                ),
            ),
        ),
        Factor(
            "observed",
            "what is observed",
            (
                Level("infectious", {"observed": "infectious"}),
                _level(
                    "all",
                    "observed",
                    "all",
                    "the susceptible, recovered and dead beside the infectious",
                    "how many are still susceptible tells when growth must end",
                    "better",
                ),
            ),
        ),
        Factor(
            "clip",
            "clipping of gradients",
            (
                Level("1", {"clip": 1.0}),
                _level(
                    "none",
                    "clip",
                    None,
                    "no clipping",
                    "gradients through two weeks of a gated cell neither vanish nor explode",
                    "equal",
                ),
            ),
        ),
        Factor(
            "keep_bias",
            "initial bias of the gate that keeps the state",
            (
                Level("chance", {"keep_bias": None}),
                _level(
                    "1",
                    "keep_bias",
                    1.0,
                    "a gate that keeps its state at first (bias 1)",
                    "it helps where gradients must cross long gaps, and two weeks are none",
                    "equal",
                ),
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
                    "windows of the tested epidemics in training, as a random split of windows does",
                    "the test then asks for what was seen a day before or after",
                    "better",
                ),
                _level(
                    "epidemics",
                    "leakage",
                    "epidemics",
                    "the tested epidemics in training, but reported anew",
                    "the network may remember each epidemic's course instead of learning what they share",
                    "better",
                ),
                _level(
                    "scaling",
                    "leakage",
                    "scaling",
                    "scaling with the mean and deviation of all data, tests included",
                    "two numbers of hundreds of epidemics tell next to nothing of any one",
                    "equal",
                ),
            ),
        ),
    ),
    responses=(
        Response("error", "7-day-ahead error around the peak", "accuracy", "lower", "%"),
        Response("wis", "weighted interval score", "accuracy", "lower", "%"),
        Response("miscoverage", "gap between stated and true coverage", "accuracy", "lower", "%"),
        Response("peak_day_error", "error of the peak day", "accuracy", "lower", "days"),
        Response("peak_height_error", "error of the peak height", "accuracy", "lower", "%"),
        Response("unseen_error", "7-day-ahead error at unseen R0", "accuracy", "lower", "%"),
        Response("epochs_to_converge", "epochs to converge", "convergence", "lower"),
        Response("parameters", "parameters", "complexity", "lower"),
        Response("flops", "arithmetic operations per forecast", "complexity", "lower"),
        Response("peak_memory", "memory of a training step", "complexity", "lower", "bytes"),
        Response("seconds_per_step", "time per training step", "complexity", "lower", "s"),
    ),
    presets={
        "smoke": Preset(
            _SETTINGS
            | {"train_epidemics": 40, "validation_epidemics": 20, "test_epidemics": 20, "epochs": 3}
            | {"classical_forecasts": 2},
            seeds=2,
            levels=_QUICK,
        ),
        "quick": Preset(_SETTINGS, seeds=16, levels=_QUICK),
        "full": Preset(
            _SETTINGS
            | {"train_epidemics": 4000, "validation_epidemics": 500, "test_epidemics": 1000}
            | {"epochs": 40, "batch_size": 256, "classical_forecasts": 290},
            seeds=30,
            levels={"process": ("map", "ode", "chain")},  # event by event, so many epidemics take hours
        ),
    },
    task=EpidemicTask,
    figures=("forecasts", "peak_by_origin", "score_by_horizon", "coverage", "history_by_noise", "compartments"),
)
