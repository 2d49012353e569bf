"""A tiny study whose runs do what a test needs: learn, diverge, raise, or take their time."""

import os
import signal
import sys
import time
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch

from ablations import devices, studies, training
from ablations.design import Factor, Hypothesis, Level, Preset, Response, Study
from ablations.engines import Ended, Epoch
from ablations.models import Dropout

DEFAULTS = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "clip": 1.0, "width": 4, "jitter": 0.0, "rows": 70}


class PlantedTask:
    """Linear regression in float64, so that the order of sums does not show."""

    per_model: ClassVar[frozenset[str]] = frozenset({"jitter", "dropout"})

    def __init__(self, settings, seed):
        if seed in settings.get("raise_for", ()):
            raise RuntimeError(f"planted failure of seed {seed}")
        if seed in settings.get("kill_for", ()):
            os.kill(os.getpid(), signal.SIGKILL)
        if "gpu_memory" in settings:
            devices.gpu_memory = lambda: devices.Memory(*settings["gpu_memory"])
            training.device = lambda: torch.device("cpu")
        self._hoard = torch.zeros(settings.get("hoard", 0), 2**20, dtype=torch.uint8)  # MiB
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(settings["rows"] + 20, 3, generator=generator, dtype=torch.float64)
        targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
        if seed in settings.get("spoil_for", ()):
            targets[0] = float("nan")
        self.split = (inputs,)
        self.train_inputs, self.train_targets = inputs[:-20], targets[:-20]
        self._held_out = inputs[-20:], targets[-20:]
        self._settings, self._seed = settings, seed

    @staticmethod
    def data_version(settings):
        return "1"

    def model(self):
        width = self._settings["width"]
        # no bias before a batch norm: its gradient is rounding alone, which Adam would magnify
        layers = (
            torch.nn.Linear(3, width, bias=False),
            torch.nn.BatchNorm1d(width),
            torch.nn.Tanh(),
            Dropout(self._settings.get("dropout", 0.0)),
            torch.nn.Linear(width, 1),
        )
        return torch.nn.Sequential(*layers).double()

    def augment(self, inputs, generator):
        return inputs + self._settings["jitter"] * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)

    def loss(self, outputs, targets):
        return torch.nn.functional.mse_loss(outputs, targets)

    @property
    def validation_inputs(self):
        return self._held_out[0]

    @property
    def validation_targets(self):
        return self._held_out[1]

    def validate(self, outputs):
        time.sleep(self._settings.get("pause", float(os.environ.get("PLANTED_PAUSE", 0))))
        return {}

    def evaluate(self, predict):
        if self._seed in self._settings.get("fail_evaluation_for", ()):
            raise RuntimeError(f"planted failure of evaluation {self._seed}")
        inputs, targets = self._held_out
        outputs = predict(inputs)
        return {"error": self.loss(outputs, targets).item()}, {"outputs": np.asarray(outputs)}


def hypothesis():
    return Hypothesis("something else", "it might matter", "better", 0.1)


def level(name, **settings):
    return Level(name, settings, hypothesis())


STUDY = Study(
    name="planted",
    title="A planted study",
    question="Do records survive what happens to runs?",
    version="1",
    factors=(
        Factor("width", "width", (Level("four", {"width": 4}), level("eight", width=8))),
        Factor("jitter", "jitter of the inputs", (Level("off", {"jitter": 0.0}), level("on", jitter=0.1))),
        Factor(
            "trouble",
            "planted trouble",
            (
                Level("none", {}),
                level("spoiled", spoil_for=[1]),
                level("raises", raise_for=[1]),
                level("fails_evaluation", fail_evaluation_for=[1]),
                level("kills", kill_for=[1]),
                level("slow", pause=0.2, epochs=100),
            ),
        ),
    ),
    responses=(Response("error", "error", "accuracy", "lower"),),
    presets={
        "quick": Preset(DEFAULTS, seeds=3, levels={"trouble": ("none",)}),
        "smoke": Preset(DEFAULTS | {"epochs": 1}, seeds=2, levels={"trouble": ("none",)}),
    },
    task=PlantedTask,
)


def at_once(events):
    """How many jobs of an engine were under way at once, at most, and how many until the first epoch had ended."""
    under_way, counts, first = set(), [], None
    for event in events:
        (under_way.discard if isinstance(event, Ended) else under_way.add)(event.job)
        counts.append(len(under_way))
        if first is None and isinstance(event, Epoch) and event.epoch:
            first = max(counts)
    assert not under_way
    return max(counts), first


def install():
    """Make this the only study that is found."""
    module = ModuleType("ablations.studies.planted")
    module.STUDY = STUDY
    sys.modules[module.__name__] = module
    studies.names = lambda: ["planted"]
