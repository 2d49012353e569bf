"""How far back does a recurrent network learn to look, and what keeps its gradients from vanishing on the way?"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

import recurve.nn
from ablations.design import Expectation, Factor, Hypothesis, Level, Predictor, Preset, Response, Study
from ablations.models import Reader

VARIANCE = 1 / 6  # of the sum of two numbers drawn evenly from [0, 1]: the error of who always answers 1


def adding_problem(count: int, length: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (count, length, 2) and the sums (count,) that they ask for.

    The first input is noise in [0, 1]; the second marks one step of each half; asked is the sum of both marked numbers
    (Hochreiter and Schmidhuber 1997, as in Arjovsky et al. 2016).
    """
    numbers = generator.random((count, length))
    marks = np.zeros_like(numbers)
    half = length // 2
    for first, end in ((0, half), (half, length)):
        marks[np.arange(count), generator.integers(first, end, count)] = 1
    inputs = np.stack([numbers, marks], axis=-1)
    return torch.from_numpy(inputs).float(), torch.from_numpy((numbers * marks).sum(axis=1)).float()


class MemoryTask:
    """The adding problem, and how the gradient of its loss fares on the way back through the sequence."""

    per_model: ClassVar[frozenset[str]] = frozenset({"initialisation", "forget_bias"})

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        if settings["length"] < 2:
            raise ValueError(f"length {settings['length']} is too short for two marks; allowed is 2 or more")
        self.settings, self.seed = settings, seed
        parts = [settings[f"{part}_sequences"] for part in ("train", "validation", "test")]
        inputs, targets = adding_problem(sum(parts), settings["length"], np.random.default_rng(seed))
        (self.train_inputs, *self._inputs), (self.train_targets, *self._targets) = (
            inputs.split(parts),
            targets.split(parts),
        )
        self.split = (inputs, targets)

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        return "1"

    def model(self) -> torch.nn.Module:
        names = ("cell", "hidden_size", "initialisation", "forget_bias")
        return Reader(inputs=2, **{name: self.settings[name] for name in names})

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(outputs, targets)

    @property
    def validation_inputs(self) -> torch.Tensor:
        return self._inputs[0]

    @property
    def validation_targets(self) -> torch.Tensor:
        return self._targets[0]

    def validate(self, outputs: torch.Tensor) -> dict[str, float]:
        return {"validation_error": float(self.loss(outputs, self._targets[0])) / VARIANCE}

    def evaluate(self, predict: Predictor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            fresh = self.model()
        norms = {"start": self.gradient_norms(fresh), "end": self.gradient_norms(predict.module())}
        error = float(self.loss(predict(self._inputs[1]), self._targets[1])) / VARIANCE
        decades = {when: float(np.abs(np.log10(norm[0] / norm[-1]))) for when, norm in norms.items()}
        responses = {"error": error, "decades_start": decades["start"], "decades_end": decades["end"]}
        arrays = {f"gradient_{when}": (norm / norm[-1]).astype(np.float32) for when, norm in norms.items()}
        return responses, arrays

    def gradient_norms(self, model: torch.nn.Module) -> np.ndarray:
        """Norms (T,) of the gradient of the test loss with respect to the hidden state after each step."""
        model = copy.deepcopy(model).train()
        with torch.enable_grad():
            with recurve.nn.probe() as record:
                loss = self.loss(model(self._inputs[1]), self._targets[1])
            loss.backward()
        return record.calls[0].dh_norms.double().numpy()


_SETTINGS = {
    "hidden_size": 32,
    "train_sequences": 4096,
    "validation_sequences": 512,
    "test_sequences": 1024,
    "epochs": 20,
    "batch_size": 64,
    "learning_rate": 5e-3,
}
MATTERS = 0.05  # of the variance: less than that and the sums would be read alike
DECADE = 0.5  # of the gradient's way back: a factor of three
STEADIER = Expectation("decades_start", "better", DECADE)
FADING = Expectation("decades_start", "worse", DECADE)

STUDY = Study(
    name="memory",
    title="Remembering over many steps",
    question="How far back does a small recurrent network learn to look, and what keeps its gradients from vanishing?",
    version="2",
    factors=(
        Factor(
            "cell",
            "recurrent cell",
            (
                Level("lstm", {"cell": "lstm"}),
                Level(
                    "gru",
                    {"cell": "gru"},
                    Hypothesis(
                        "a GRU in place of an LSTM",
                        "its update gate holds a number as well as a forget gate does, with fewer parameters",
                        "equal",
                        MATTERS,
                    ),
                ),
                Level(
                    "rnn",
                    {"cell": "rnn"},
                    Hypothesis(
                        "a plain tanh network in place of an LSTM",
                        "every step multiplies the gradient by the recurrent weights and a slope below one, so that it "
                        "vanishes on the way back (Hochreiter 1991, Bengio et al. 1994)",
                        "worse",
                        MATTERS,
                        (FADING,),
                    ),
                ),
                Level(
                    "irnn",
                    {"cell": "irnn"},
                    Hypothesis(
                        "rectified units that start as copies of themselves, in place of an LSTM",
                        "the identity hands the gradient back unchanged (Le et al. 2015), but nothing holds it once "
                        "training has moved the weights",
                        "worse",
                        MATTERS,
                        (STEADIER,),
                    ),
                ),
            ),
        ),
        Factor(
            "forget_bias",
            "forget gate at the start",
            (
                Level("half open", {"forget_bias": None}),
                Level(
                    "open",
                    {"forget_bias": 1.0},
                    Hypothesis(
                        "a forget gate that starts open, with a bias of 1",
                        "a gate that starts half open halves the cell at every step (Gers et al. 2000, Jozefowicz et "
                        "al. 2015)",
                        "better",
                        MATTERS,
                        (STEADIER,),
                    ),
                ),
                Level(
                    "wide open",
                    {"forget_bias": 4.0},
                    Hypothesis(
                        "a forget gate that starts wide open, with a bias of 4",
                        "a cell that keeps 98 % at every step spans the whole sequence from the first update on",
                        "better",
                        MATTERS,
                        (STEADIER,),
                    ),
                ),
            ),
        ),
        Factor(
            "recurrent_start",
            "recurrent weights at the start",
            (
                Level("uniform", {"initialisation": "uniform"}),
                Level(
                    "orthogonal",
                    {"initialisation": "orthogonal"},
                    Hypothesis(
                        "orthogonal recurrent weights in place of small uniform ones",
                        "they keep the length of what passes through them (Saxe et al. 2014)",
                        "better",
                        MATTERS,
                        (STEADIER,),
                    ),
                ),
            ),
        ),
        Factor(
            "length",
            "length of the sequence",
            (
                Level("40", {"length": 40}),
                Level(
                    "20",
                    {"length": 20},
                    Hypothesis(
                        "sequences half as long",
                        "the gradient has half as far to go",
                        "better",
                        MATTERS,
                        (STEADIER,),
                    ),
                ),
                Level(
                    "80",
                    {"length": 80},
                    Hypothesis(
                        "sequences twice as long",
                        "the first mark lies too far back for its gradient to be seen",
                        "worse",
                        MATTERS,
                        (FADING,),
                    ),
                ),
            ),
        ),
        Factor(
            "clip",
            "gradient clipping",
            (
                Level("1", {"clip": 1.0}),
                Level(
                    "none",
                    {"clip": float("inf")},
                    Hypothesis(
                        "no clipping",
                        "a gated network's gradients seldom explode, so that there is little to clip",
                        "equal",
                        MATTERS,
                    ),
                ),
            ),
        ),
    ),
    responses=(
        Response("error", "unexplained share of the sum's variance", "accuracy", "lower", "%"),
        Response("decades_start", "decades between the gradient's two ends, untrained", "convergence", "lower"),
        Response("decades_end", "decades between the gradient's two ends, trained", "convergence", "lower"),
        Response("epochs_to_converge", "epochs to converge", "convergence", "lower"),
        Response("parameters", "parameters", "complexity", "lower"),
        Response("flops", "arithmetic operations per sequence", "complexity", "lower"),
        Response("peak_memory", "memory of a training step", "complexity", "lower", "bytes"),
        Response("seconds_per_step", "time per training step", "complexity", "lower", "s"),
    ),
    presets={
        "smoke": Preset(
            _SETTINGS | {"train_sequences": 256, "validation_sequences": 64, "test_sequences": 64, "epochs": 2},
            seeds=2,
            levels={"length": ("40",)},
        ),
        "quick": Preset(_SETTINGS, seeds=8),
        "full": Preset(_SETTINGS | {"train_sequences": 50_000, "hidden_size": 128, "epochs": 40}, seeds=30),
    },
    task=MemoryTask,
    figures=tuple(f"ablations.report.figures.gradients:draw_{state}" for state in ("untrained", "trained")),
)
