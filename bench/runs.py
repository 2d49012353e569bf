"""Whole runs of a study as a case: trained as one ensemble against one by one on torch.nn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import recurve
from ablations import studies
from ablations.complexity import complexity
from ablations.design import Task
from ablations.records import Configuration
from ablations.training import PREDICT_ROWS, Ensemble, fresh_model, joined, learn, stream
from bench.cases import BYTES
from bench.protocol import NATIVE, OURS, Competitor, Problem

FEWER: dict[str, dict[str, Any]] = {  # so that a block takes seconds: model, batch and validation's share are those of
    # the quick preset, and epochs enough that making the models, which both sides do, weighs little, as it does there
    "epidemic": {
        "train_epidemics": 30,
        "validation_epidemics": 8,
        "test_epidemics": 8,
        "epochs": 3,
        "schedule": "constant",
        "learning_rate": 5e-3,
    },
    "vision": {"train_images": 128, "validation_images": 64, "test_images": 80, "shifted_images": 16, "epochs": 1},
}


@dataclass(frozen=True)
class Runs:
    """All seeds of a study's baseline: same data, order, augmentation, optimizer and validation on both sides.

    Left out is what is the same code on both sides, once per run: making the data, and the evaluation at the end.
    `whole` is one epoch of the quick preset's data; else they are few, so that a block takes seconds.
    """

    study: str
    seeds: int
    whole: bool = False

    @property
    def group(self) -> str:
        return "ensemble-runs"

    @property
    def shape(self) -> str:
        return f"{self.study}-E{self.seeds}" + ("-epoch" if self.whole else "")

    @property
    def flops(self) -> int:
        """Of the training steps; validation comes on top."""
        task, settings = self._task(0), self._settings
        rows = len(task.train_inputs) // settings["batch_size"] * settings["batch_size"] * settings["epochs"]
        return 3 * complexity(task, settings["batch_size"]).flops * rows * self.seeds

    @property
    def least_flops(self) -> int:
        return 0  # several algorithms share the work

    @property
    def bytes(self) -> int:
        """Of the training data, once."""
        task = self._task(0)
        return BYTES * self.seeds * (task.train_inputs.numel() + task.train_targets.numel())

    def problem(self, seed: int = 0, device: str = "cpu") -> Problem:
        tasks = [self._task(seed) for seed in range(self.seeds)]
        settings = self._settings
        runs = [Configuration(self.study, "", "", "", settings, {}, seed) for seed in range(self.seeds)]

        def one_by_one(tasks: Sequence[Task]) -> Competitor:
            return Competitor(
                lambda sample: [_run_alone(*numbered, settings) for numbered in enumerate(tasks)], answer=_stacked
            )

        together = Competitor(lambda sample: _run_together(runs, tasks), answer=_stacked)
        competitors = {OURS: together, NATIVE: one_by_one(tasks)}
        return Problem([(torch.arange(self.seeds),)], competitors, one_by_one(list(map(_double, tasks))))

    @property
    def _settings(self) -> dict[str, Any]:
        study = studies.load(self.study)
        return study.settings("quick", study.baseline) | ({"epochs": 1} if self.whole else FEWER[self.study])

    def _task(self, seed: int) -> Task:
        return studies.load(self.study).task(self._settings, seed)


def _run_together(runs: Sequence[Configuration], tasks: Sequence[Task]) -> list[Tensor]:
    """Validation losses (epochs,) of every run."""
    ensemble = Ensemble(runs, cast(type[Task], lambda settings, seed: tasks[seed]))
    curves, _ = learn(ensemble, lambda epoch, epochs, rows: None)
    return [torch.tensor([row["validation_loss"] for row in curve], dtype=torch.float64) for curve in curves]


def _run_alone(seed: int, task: Task, settings: Mapping[str, Any]) -> Tensor:
    """Validation losses (epochs,) of a run on torch's own layers."""
    dtype = task.train_inputs.dtype
    with recurve.backend("native"):
        model = fresh_model(task, seed).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
        order, augmentation, losses = stream(seed, "order"), stream(seed, "augmentation"), []

        for _ in range(settings["epochs"]):
            batches = torch.randperm(len(task.train_inputs), generator=order).split(settings["batch_size"])
            model.train()
            for rows in batches[: len(task.train_inputs) // settings["batch_size"]]:
                outputs = model(task.augment(task.train_inputs[rows], augmentation))
                loss = task.loss(outputs, task.train_targets[rows])
                optimizer.zero_grad()
                loss.backward()
                if "clip" in settings:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
                optimizer.step()
            model.eval()
            with torch.no_grad():
                outputs = joined([model(rows.to(dtype)) for rows in task.validation_inputs.split(PREDICT_ROWS)])
            losses.append(task.loss(outputs, task.validation_targets))
            task.validate(outputs)
    return torch.stack(losses).double()


def _double(task: Task) -> Task:
    """The task with training data in float64."""
    double = copy.copy(task)
    double.train_inputs = task.train_inputs.double()
    if task.train_targets.is_floating_point():
        double.train_targets = task.train_targets.double()
    return double


def _stacked(losses: Sequence[Tensor]) -> list[Tensor]:
    return [torch.stack(list(losses))]
