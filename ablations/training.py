"""Trains ensembles: runs whose models have the same shapes, stacked and trained in one pass, each as if alone."""

from __future__ import annotations

import copy
import hashlib
import math
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakMethod

import numpy as np
import pandas as pd
import torch
from torch.func import functional_call, stack_module_state
from torch.utils._pytree import tree_map

import recurve
from ablations.complexity import Complexity, complexity
from ablations.design import Task
from ablations.devices import device
from ablations.graphs import Replayed, Work
from ablations.models import Dropout
from ablations.optimizers import Average, Optimizer, beside, schedule
from ablations.records import PROBE_SECONDS, Configuration, Records, Result, Status

CONVERGED_WITHIN = 0.05  # of the lowest validation loss, relative
PREDICT_ROWS = 1024  # at once, of all models together

Row = Mapping[str, float]  # of a learning curve: epoch, step, seconds, both losses and the task's measures
Report = Callable[[int, int, Mapping[str, Row]], None]  # epoch, of epochs, the newest row by key of the run
Outcome = Status | Literal["elsewhere"]  # finished by another process, or owned by one


@contextmanager
def one_thread() -> Iterator[None]:
    """Jobs share a machine by cores, and the number of threads decides the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Ensemble:
    """Models of one shape, each with its own data, weights, optimiser state and random streams.

    The streams are derived from the run's seed alone, so that a seed has the same data order, augmentation and dropout
    in every condition, and the same initial weights where the model draws them alike. Runs may differ in seed, learning
    rate and its scale, clipping and what their task calls `per_model`.

    Raises `ValueError` if they differ in the shapes of their data. A model that draws random numbers in its
    forward pass is refused by `torch.vmap`, since those draws would depend on who trains beside it; `models.Dropout`
    serves instead.
    """

    def __init__(self, configurations: Sequence[Configuration], task_type: type[Task]) -> None:
        self.configurations = configurations
        self.settings = configurations[0].settings
        self.tasks = [task_type(c.settings, c.seed) for c in configurations]
        shapes = {_shapes(task) for task in self.tasks}
        if len(shapes) > 1:
            raise ValueError(f"runs trained together need data of one shape, these have {sorted(shapes)}")
        models = []
        for task, configuration in zip(self.tasks, configurations, strict=True):
            models.append(fresh_model(task, configuration.seed))
        self._model = models[0]
        for layers in zip(*map(_dropouts, models), strict=True):
            layers[0].drops = any(layer.drops for layer in layers)
        names = list(self._model.named_parameters(remove_duplicate=False))
        self._tied = len(names) > len(list(self._model.parameters()))  # asked once: it takes a tenth of a small step
        self._order = [stream(c.seed, "order") for c in configurations]
        self._augmentation = [stream(c.seed, "augmentation") for c in configurations]
        self._initial_weights = [_digest(*map(torch.Tensor.detach, model.parameters())) for model in models]
        self._device = device()
        self._parameters, self._buffers = (_on(self._device, state) for state in stack_module_state(models))
        self._trained = self._shared() if len(models) == 1 else list(self._parameters.values())
        rates = _per_model(configurations, "learning_rate") * _per_model(configurations, "rate_scale", absent=1.0)
        scales = schedule(self.settings.get("schedule", "constant"), self.settings["epochs"] * self.steps_per_epoch)
        name = self.settings.get("optimizer", "adam")
        self._optimizer = Optimizer(name, self._trained, rates, scales)
        self._average = Average(self._parameters | self._buffers, self.settings.get("averaging", 0.0))
        self._clip = _per_model(configurations, "clip", absent=math.inf)
        self._clips = bool(self._clip.isfinite().any())
        self._data = [[t.to(self._device) for t in (task.train_inputs, task.train_targets)] for task in self.tasks]
        self._validation = [
            [part.to(self._device) for part in parts]
            for parts in zip(*((task.validation_inputs, task.validation_targets) for task in self.tasks), strict=True)
        ]
        self._replayed: Replayed | None = None
        if self._device.type == "cuda":
            self._clip = self._clip.to(self._device)
            work = WeakMethod(self._step)  # without a cycle, memory is free as soon as an ensemble is
            self._replayed = Replayed(lambda *inputs: cast(Work, work())(*inputs))

    def _shared(self) -> list[torch.Tensor]:
        """The parameters of a model by itself, after it got the stacked tensors: it can train as any module does."""
        own: list[torch.Tensor] = list(self._model.to(self._device).parameters())
        stacked = [*self._parameters.values(), *self._buffers.values()]
        for tensor, stack in zip([*own, *self._model.buffers()], stacked, strict=True):
            tensor.data = stack.detach()[0]
        return own

    def pairing(self, member: int) -> dict[str, str]:
        """Hashes of what runs of one seed share."""
        task, seed = self.tasks[member], self.configurations[member].seed
        return {
            "split": _digest(*task.split),
            "order": _digest(torch.randperm(len(task.train_inputs), generator=stream(seed, "order"))),
            "augmentation": _digest(stream(seed, "augmentation").get_state()),
            "weights": self._initial_weights[member],
        }

    @cached_property
    def complexity(self) -> Complexity:
        """Of one model with one batch."""
        return complexity(self.tasks[0], self.batch_size)

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
            torch.randperm(len(task.train_inputs), generator=generator).to(self._device).split(self.batch_size)
            for task, generator in zip(self.tasks, self._order, strict=True)
        ]
        for step in range(self.steps_per_epoch):
            rows = [order[step] for order in orders]
            inputs = [
                task.augment(data.index_select(0, row), generator)
                for task, (data, _), row, generator in zip(
                    self.tasks, self._data, rows, self._augmentation, strict=True
                )
            ]
            targets = [data.index_select(0, row) for (_, data), row in zip(self._data, rows, strict=True)]
            yield torch.stack(inputs), torch.stack(targets)

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One training step of every model; their losses (E,)."""
        if not self._model.training:
            self._model.train()
        return (self._replayed or self._step)(inputs, targets)

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        for parameter in self._trained:
            parameter.grad = None  # a recording that failed may have left one
        losses = self._backward(inputs, targets)
        if self._clips:
            gradients = [p.grad for p in self._trained if p.grad is not None]
            _clip(gradients if len(self.tasks) > 1 else [g.unsqueeze(0) for g in gradients], self._clip)
        self._optimizer.step()
        self._average.update()
        return losses

    def _backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Set the gradients of all models and return their losses (E,)."""
        if len(self.tasks) > 1:
            losses = torch.vmap(self._loss)(self._parameters, self._buffers, inputs, targets)
            losses.sum().backward()
            return losses.detach()
        loss = self.tasks[0].loss(self._model(inputs[0]), targets[0])
        loss.backward()
        return loss.detach().unsqueeze(0)

    @torch.no_grad()
    def validate(self) -> tuple[torch.Tensor, list[Any]]:
        """Losses (E,) and outputs of each model, as `predictor` gives it, on its task's validation part."""
        self._model.eval()
        inputs, targets = self._validation
        # a batch at a time, or more if that is few: without gradients it takes less memory than a training step
        rows = max(self.batch_size, PREDICT_ROWS // len(inputs))
        outputs = joined(
            [
                self._of_all(self._outputs)(self._average.values, torch.stack(part))
                for part in zip(*(of_task.split(rows) for of_task in inputs), strict=True)
            ],
            dim=1,
        )
        losses = self._of_all(self.tasks[0].loss)(outputs, torch.stack(targets)).cpu()
        return losses, [tree_map(lambda t, member=member: t[member].cpu(), outputs) for member in range(len(inputs))]

    def predictor(self, member: int) -> Trained:
        """One model as it is now, with its averaged weights where the settings ask for averaging."""
        return Trained(self._model, {name: tensor[member].detach() for name, tensor in self._average.values.items()})

    def _of_all(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of one model as one of stacked models; a single model is spared the milliseconds of `vmap`."""
        if len(self.tasks) > 1:
            return torch.vmap(function)

        def of_one(*stacked: Any) -> Any:
            return tree_map(lambda t: t.unsqueeze(0), function(*tree_map(lambda t: t.squeeze(0), stacked)))

        return of_one

    def _outputs(self, state: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> Any:
        return functional_call(self._model, dict(state), (inputs,), tie_weights=self._tied)

    def _loss(
        self,
        parameters: dict[str, torch.Tensor],
        buffers: dict[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        return self.tasks[0].loss(self._outputs(parameters | buffers, inputs), targets)


class Trained:
    """The function of inputs (N, ...) that a model is with the given state, in evaluation mode, without gradients."""

    def __init__(self, model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        self._model, self._state = model, dict(state)

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor) -> Any:
        self._model.eval()
        where = next(iter(self._state.values())).device
        parts = [functional_call(self._model, self._state, (rows.to(where),)) for rows in inputs.split(PREDICT_ROWS)]
        return tree_map(lambda t: t.to(inputs.device), joined(parts))

    def module(self) -> torch.nn.Module:
        """A copy of the model by itself, in evaluation mode."""
        module = copy.deepcopy(self._model).eval()
        module.load_state_dict(self._state)
        return module


def joined(parts: Sequence[Any], dim: int = 0) -> Any:
    """What models made of parts of their inputs, as if of the whole."""
    return tree_map(lambda *tensors: torch.cat(tensors, dim), *parts)


def _shapes(task: Task) -> tuple[tuple[int, ...], ...]:
    parts = (task.train_inputs, task.train_targets, task.validation_inputs, task.validation_targets)
    return tuple(tuple(part.shape) for part in parts)


def _on(where: torch.device, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state there, to be differentiated as before."""
    return {name: t.detach().to(where).requires_grad_(t.requires_grad) for name, t in state.items()}


def fresh_model(task: Task, seed: int) -> torch.nn.Module:
    """The run's model before its first step."""
    torch.default_generator.manual_seed(_derived_seed(seed, "weights"))  # torch.manual_seed takes longer than a model
    model = task.model()
    for place, layer in enumerate(_dropouts(model)):
        layer.stream.fill_(_derived_seed(seed, f"dropout {place}"))
    return model


def _dropouts(model: torch.nn.Module) -> list[Dropout]:
    return [module for module in model.modules() if isinstance(module, Dropout)]


@one_thread()
def train(
    configurations: Sequence[Configuration],
    task_type: type[Task],
    records: Records,
    report: Report = lambda epoch, epochs, rows: None,
    patience: float = PROBE_SECONDS,
) -> list[Outcome]:
    """Train runs that may share an ensemble, and write each one's record; those of other processes are left to them,
    after so many seconds of patience.

    To the task's responses are added `parameters`, `flops`, `peak_memory` and `epochs_to_converge`, the first epoch
    whose validation loss is within 5 % of the run's lowest. A run whose loss stops being finite is recorded as
    diverged, and the others go on unharmed. When an ensemble raises, for want of memory or for any reason, its halves
    are trained one after the other, so that only the runs that raise alone are recorded as failed.
    Raises `RecordsError` if the records cannot be written.
    """
    with records.claim(configurations, patience) as mine:
        outcomes = _train_halving(mine, task_type, records, report) if mine else {}
    return [outcomes.get(configuration.key, "elsewhere") for configuration in configurations]


def _train_halving(
    configurations: Sequence[Configuration], task_type: type[Task], records: Records, report: Report
) -> dict[str, Outcome]:
    trained = _try_together(configurations, task_type, report)
    if not isinstance(trained, str):
        return {
            configuration.key: _finish(member, *trained, records) for member, configuration in enumerate(configurations)
        }
    if len(configurations) == 1:
        records.save(configurations[0], Result("failed", {}, trained), environment=environment())
        return {configurations[0].key: "failed"}
    half = len(configurations) // 2
    first, second = (
        _train_halving(part, task_type, records, report) for part in (configurations[:half], configurations[half:])
    )
    return first | second


def _try_together(
    configurations: Sequence[Configuration], task_type: type[Task], report: Report
) -> tuple[Ensemble, list[list[Row]], dict[int, str]] | str:
    """The trained ensemble with its learning curves and divergences, or the traceback of what went wrong."""
    try:
        ensemble = Ensemble(configurations, task_type)
        return ensemble, *learn(ensemble, report)
    except Exception:  # noqa: BLE001 -- whatever a study raises belongs in its record
        return f"training raised:\n{traceback.format_exc()}"


def environment() -> dict[str, Any]:
    """Where and when: versions, CPU, GPU, threads, git commit (null outside a checkout) and date."""
    return {**_machine(), "threads": torch.get_num_threads(), "date": datetime.now(UTC).isoformat()}


def learn(ensemble: Ensemble, report: Report) -> tuple[list[list[Row]], dict[int, str]]:
    """Each member's learning curve, and the message of those that diverged."""
    keys = [configuration.key for configuration in ensemble.configurations]
    curves: list[list[Row]] = [[] for _ in keys]
    diverged: dict[int, str] = {}
    epochs, start = ensemble.settings["epochs"], time.perf_counter()
    report(0, epochs, {})
    for epoch in range(1, epochs + 1):
        losses = torch.stack([ensemble.step(inputs, targets) for inputs, targets in ensemble.batches()]).cpu()
        validation_losses, outputs = ensemble.validate()
        for member, task in enumerate(ensemble.tasks):
            if member in diverged:
                continue
            steps = (epoch - 1) * ensemble.steps_per_epoch
            lost = (~losses[:, member].isfinite()).nonzero()
            if len(lost):
                diverged[member] = f"training loss was not finite at epoch {epoch}, step {steps + int(lost[0]) + 1}"
                continue
            if not validation_losses[member].isfinite():
                step = steps + ensemble.steps_per_epoch
                diverged[member] = f"validation loss was not finite after epoch {epoch}, step {step}"
                continue
            row = {"epoch": epoch, "step": steps + ensemble.steps_per_epoch, "seconds": time.perf_counter() - start}
            row |= {"train_loss": float(losses[:, member].mean()), "validation_loss": float(validation_losses[member])}
            measures = task.validate(outputs[member])
            curves[member].append(row | {name: float(value) for name, value in measures.items()})
        report(epoch, epochs, {keys[m]: curve[-1] for m, curve in enumerate(curves) if m not in diverged})
        if len(diverged) == len(keys):
            break
    return curves, diverged


def _finish(
    member: int, ensemble: Ensemble, curves: Sequence[Sequence[Row]], diverged: Mapping[int, str], records: Records
) -> Status:
    """Evaluate one member and write its record."""
    rows = curves[member]
    save = partial(
        records.save,
        ensemble.configurations[member],
        environment=environment(),
        curve=pd.DataFrame(rows) if rows else None,
    )
    result = partial(Result, pairing=ensemble.pairing(member))
    responses: dict[str, float] = asdict(ensemble.complexity)
    if member in diverged:
        save(result("diverged", responses, diverged[member]))
        return "diverged"
    try:
        measured, predictions = ensemble.tasks[member].evaluate(ensemble.predictor(member))
        responses |= {name: float(value) for name, value in measured.items()}
    except Exception:  # noqa: BLE001 -- whatever a study raises belongs in its record
        save(result("failed", responses, f"evaluation raised:\n{traceback.format_exc()}"))
        return "failed"
    responses["epochs_to_converge"] = _epochs_to_converge(rows)
    save(result("done", responses), predictions=predictions)
    return "done"


def _digest(*arrays: np.ndarray | torch.Tensor) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _epochs_to_converge(rows: Sequence[Mapping[str, float]]) -> int:
    lowest = min(row["validation_loss"] for row in rows)
    near = lowest + CONVERGED_WITHIN * abs(lowest)
    return next(int(row["epoch"]) for row in rows if row["validation_loss"] <= near)


def _clip(gradients: Sequence[torch.Tensor], max_norms: torch.Tensor) -> None:
    """Scale each model's gradients (E, ...) so that their global norm is at most its `max_norms`, (E,)."""
    squares = torch.stack([gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients])
    scale = (max_norms.to(squares) / squares.sum(0).sqrt()).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(beside(scale, gradient))


def _per_model(configurations: Sequence[Configuration], setting: str, absent: float | None = None) -> torch.Tensor:
    """The setting's value in each run, (E,); `absent` where it is missing or None."""
    values = [configuration.settings.get(setting) for configuration in configurations]
    return torch.tensor([absent if value is None else value for value in values], dtype=torch.float64)


def _derived_seed(seed: int, stream: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{stream} {seed}".encode()).digest()[:7], "big")


def stream(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(_derived_seed(seed, stream))


@cache
def _machine() -> Mapping[str, Any]:
    return {
        "recurve": recurve.status(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
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
