"""Trains ensembles: runs whose models have the same shapes, stacked and trained in one pass, each as if alone."""

from __future__ import annotations

import hashlib
import platform
import random
import statistics
import subprocess
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.func import functional_call, stack_module_state

import recurve
from ablations.design import Task
from ablations.records import Configuration, Records, Result, Status

CONVERGED_WITHIN = 0.05  # of the lowest validation loss, relative
PREDICT_ROWS = 1024

EpochReport = Callable[[int, int, float], None]  # epoch, of epochs, median validation loss


@dataclass(frozen=True)
class Cost:
    """What a run of a condition takes: its model's parameters and its share of the ensemble's training time."""

    parameters: int
    seconds_per_run: float


@contextmanager
def _one_thread() -> Iterator[None]:
    """Jobs share a machine by cores, and the number of threads decides the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Ensemble:
    """Models of one shape, each with its own data, weights, optimiser state and random streams.

    The streams are derived from the run's seed alone, so that a seed has the same data order and augmentation in every
    condition, and the same initial weights where the model draws them alike. Raises `ValueError` if the runs differ in
    the shapes of their training data. A model that draws random numbers in its forward pass is refused by `torch.vmap`:
    those draws would depend on who trains beside it.
    """

    def __init__(self, configurations: Sequence[Configuration], task_type: type[Task]) -> None:
        self.settings = configurations[0].settings
        self.tasks = [task_type(c.settings, c.seed) for c in configurations]
        shapes = {(tuple(task.train_inputs.shape), tuple(task.train_targets.shape)) for task in self.tasks}
        if len(shapes) > 1:
            raise ValueError(f"runs trained together need training data of one shape, these have {sorted(shapes)}")
        models = []
        for task, configuration in zip(self.tasks, configurations, strict=True):
            torch.manual_seed(_derived_seed(configuration.seed, "weights"))
            models.append(task.model())
        self._model = models[0]
        self._parameters, self._buffers = stack_module_state(models)
        self._order = [_generator(c.seed, "order") for c in configurations]
        self._augmentation = [_generator(c.seed, "augmentation") for c in configurations]
        self._optimizer = torch.optim.Adam(self._parameters.values(), lr=self.settings["learning_rate"])
        self._losses = torch.vmap(self._loss)

    @property
    def parameters(self) -> int:
        """Trainable parameters of one model."""
        return sum(parameter[0].numel() for parameter in self._parameters.values())

    @property
    def batch_size(self) -> int:
        return min(self.settings["batch_size"], len(self.tasks[0].train_inputs))

    @property
    def steps_per_epoch(self) -> int:
        """An incomplete last batch is left out; the next epoch's order brings its rows back."""
        return len(self.tasks[0].train_inputs) // self.batch_size

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch of inputs (E, B, ...) and targets (E, B, ...), shuffled and augmented for each run by itself."""
        orders = [
            torch.randperm(len(task.train_inputs), generator=generator).split(self.batch_size)
            for task, generator in zip(self.tasks, self._order, strict=True)
        ]
        for step in range(self.steps_per_epoch):
            rows = [order[step] for order in orders]
            inputs = [
                task.augment(task.train_inputs[row], generator)
                for task, row, generator in zip(self.tasks, rows, self._augmentation, strict=True)
            ]
            targets = [task.train_targets[row] for task, row in zip(self.tasks, rows, strict=True)]
            yield torch.stack(inputs), torch.stack(targets)

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One training step of every model; their losses (E,)."""
        self._model.train()
        losses = self._losses(self._parameters, self._buffers, inputs, targets)
        self._optimizer.zero_grad()
        losses.sum().backward()
        if self.settings.get("clip") is not None:
            _clip([p.grad for p in self._parameters.values() if p.grad is not None], self.settings["clip"])
        self._optimizer.step()
        return losses.detach()

    def predictor(self, member: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function (N, ...) -> (N, ...) that one model is now, in evaluation mode and without gradients."""
        state = {name: tensor[member].detach() for name, tensor in (self._parameters | self._buffers).items()}

        @torch.no_grad()
        def predict(inputs: torch.Tensor) -> torch.Tensor:
            self._model.eval()
            return torch.cat([functional_call(self._model, state, (rows,)) for rows in inputs.split(PREDICT_ROWS)])

        return predict

    def _loss(
        self,
        parameters: dict[str, torch.Tensor],
        buffers: dict[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        return self.tasks[0].loss(functional_call(self._model, (parameters, buffers), (inputs,)), targets)


@_one_thread()
def train(
    configurations: Sequence[Configuration],
    task_type: type[Task],
    records: Records,
    report: EpochReport = lambda epoch, epochs, validation_loss: None,
) -> list[Status]:
    """Train the runs of one condition, which differ by seed only, as one ensemble, and write each one's record.

    To the task's responses are added `parameters` and `epochs_to_converge`, the first epoch whose validation loss is
    within 5 % of the run's lowest. A run whose loss stops being finite is recorded as diverged, and the others go on
    unharmed. What a study's code raises is recorded as failed, not raised.
    """
    try:
        ensemble = Ensemble(configurations, task_type)
        curves, diverged = _learn(ensemble, report)
    except Exception:  # noqa: BLE001 -- whatever a study raises belongs in its record
        together = f" (in an ensemble of {len(configurations)} runs)" if len(configurations) > 1 else ""
        failed = Result("failed", {}, f"training raised{together}:\n{traceback.format_exc()}")
        for configuration in configurations:
            records.save(configuration, failed, environment=environment())
        return ["failed"] * len(configurations)
    return [
        _finish(ensemble, member, configuration, curves[member], diverged.get(member), records)
        for member, configuration in enumerate(configurations)
    ]


@_one_thread()
def estimate_cost(configurations: Sequence[Configuration], task_type: type[Task]) -> Cost:
    """The cost of a run trained in this ensemble, from its making, a few training steps and one validation."""
    start = time.perf_counter()
    ensemble = Ensemble(configurations, task_type)
    making = time.perf_counter() - start
    step = statistics.median(_step_seconds(ensemble, warm_up=1, budget=0.0))
    start = time.perf_counter()
    ensemble.tasks[0].validate(ensemble.predictor(0))
    validation = time.perf_counter() - start
    epoch = ensemble.steps_per_epoch * step / len(configurations) + validation
    return Cost(ensemble.parameters, making / len(configurations) + ensemble.settings["epochs"] * epoch)


@_one_thread()
def measure_seconds_per_step(
    configurations: Sequence[Configuration],
    task_type: type[Task],
    records: Records,
    report: Callable[[int, int], None] = lambda done, blocks: None,
) -> None:
    """Time training steps of one model per run, seed by seed, and save them as `seconds_per_step`.

    A seed is a block: its conditions are timed next to each other in random order, and saved together, so that their
    ratios are paired. A block that lacks a timing is measured whole. Nothing else may run on the machine meanwhile.
    """
    blocks: dict[int, list[Configuration]] = defaultdict(list)
    for configuration in configurations:
        blocks[configuration.seed].append(configuration)
    lacking = {seed: block for seed, block in blocks.items() if not all(map(records.has_timing, block))}
    for done, (seed, block) in enumerate(lacking.items()):
        report(done, len(lacking))
        timings = {}
        for configuration in random.Random(seed).sample(block, len(block)):
            seconds = _step_seconds(Ensemble([configuration], task_type), warm_up=2, budget=0.08)
            timings[configuration.key] = statistics.median(seconds)
        for configuration in block:
            records.save_timing(configuration, {"seconds_per_step": timings[configuration.key]})
    report(len(lacking), len(lacking))


def environment() -> dict[str, Any]:
    """Where and when: versions, CPU, threads, git commit (null outside a checkout) and date."""
    return {**_machine(), "threads": torch.get_num_threads(), "date": datetime.now(UTC).isoformat()}


def _learn(ensemble: Ensemble, report: EpochReport) -> tuple[list[list[dict[str, float]]], dict[int, str]]:
    """Each member's learning curve, and the message of those that diverged."""
    curves: list[list[dict[str, float]]] = [[] for _ in ensemble.tasks]
    diverged: dict[int, str] = {}
    epochs, start = ensemble.settings["epochs"], time.perf_counter()
    report(0, epochs, float("nan"))
    for epoch in range(1, epochs + 1):
        losses = torch.stack([ensemble.step(inputs, targets) for inputs, targets in ensemble.batches()])
        for member, task in enumerate(ensemble.tasks):
            if member in diverged:
                continue
            steps = (epoch - 1) * ensemble.steps_per_epoch
            lost = (~losses[:, member].isfinite()).nonzero()
            if len(lost):
                diverged[member] = f"training loss was not finite at epoch {epoch}, step {steps + int(lost[0]) + 1}"
                continue
            measures = {name: float(value) for name, value in task.validate(ensemble.predictor(member)).items()}
            if not torch.tensor(measures["validation_loss"]).isfinite():
                diverged[member] = f"validation loss was not finite after epoch {epoch}"
                continue
            row = {"epoch": epoch, "step": steps + ensemble.steps_per_epoch, "seconds": time.perf_counter() - start}
            curves[member].append(row | {"train_loss": float(losses[:, member].mean())} | measures)
        if len(diverged) == len(ensemble.tasks):
            break
        report(
            epoch,
            epochs,
            statistics.median(c[-1]["validation_loss"] for m, c in enumerate(curves) if m not in diverged),
        )
    return curves, diverged


def _finish(
    ensemble: Ensemble,
    member: int,
    configuration: Configuration,
    rows: list[dict[str, float]],
    diverged: str | None,
    records: Records,
) -> Status:
    """Evaluate one member and write its record."""
    curve = pd.DataFrame(rows) if rows else None
    responses: dict[str, float] = {"parameters": ensemble.parameters}
    if diverged:
        records.save(configuration, Result("diverged", responses, diverged), environment=environment(), curve=curve)
        return "diverged"
    try:
        measured, predictions = ensemble.tasks[member].evaluate(ensemble.predictor(member))
    except Exception:  # noqa: BLE001 -- whatever a study raises belongs in its record
        failed = Result("failed", responses, f"evaluation raised:\n{traceback.format_exc()}")
        records.save(configuration, failed, environment=environment(), curve=curve)
        return "failed"
    responses |= {name: float(value) for name, value in measured.items()}
    responses["epochs_to_converge"] = _epochs_to_converge(rows)
    done = Result("done", responses)
    records.save(configuration, done, environment=environment(), curve=curve, predictions=predictions)
    return "done"


def _epochs_to_converge(rows: Sequence[Mapping[str, float]]) -> int:
    lowest = min(row["validation_loss"] for row in rows)
    near = lowest + CONVERGED_WITHIN * abs(lowest)
    return next(int(row["epoch"]) for row in rows if row["validation_loss"] <= near)


def _step_seconds(ensemble: Ensemble, warm_up: int, budget: float) -> list[float]:
    """Seconds of single training steps, batch and augmentation included: at least 3, more while `budget` lasts."""
    batches = chain.from_iterable(ensemble.batches() for _ in count())
    for _ in range(warm_up):
        ensemble.step(*next(batches))
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < budget:
        start = time.perf_counter()
        ensemble.step(*next(batches))
        seconds.append(time.perf_counter() - start)
    return seconds


def _clip(gradients: Sequence[torch.Tensor], max_norm: float) -> None:
    """Scale each model's gradients (E, ...) so that their global norm is at most `max_norm`."""
    squares = torch.stack([gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients])
    scale = (max_norm / squares.sum(0).sqrt()).clamp(max=1.0)  # (E,)
    for gradient in gradients:
        gradient.mul_(scale.reshape(-1, *[1] * (gradient.dim() - 1)))


def _derived_seed(seed: int, stream: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{stream} {seed}".encode()).digest()[:7], "big")


def _generator(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(_derived_seed(seed, stream))


@cache
def _machine() -> Mapping[str, Any]:
    return {
        "recurve": recurve.status(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "commit": _git_commit(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git_commit() -> str | None:
    """Commit of this checkout, with `-dirty` if it has changes; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
