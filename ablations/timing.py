"""What training takes: the estimate before a run, and the exclusive, paired pass after it."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import recurve
from ablations.complexity import count_parameters, peak_memory
from ablations.design import Task
from ablations.optimizers import OF_TORCH
from ablations.records import Configuration, Records
from ablations.training import Ensemble, fresh_model, one_thread

ROUNDS = 5  # in which every competitor of a block has its turn
TURN_SECONDS = 0.004  # at least, of steps in a row
WARM_UP = 2  # steps before a competitor's first turn
COLUMNS = ("seconds_per_step", "native_seconds_per_step", "seconds_per_inference", "native_seconds_per_inference")

Step = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """What a run of a condition takes: parameters and memory of its model, and its share of the ensemble's time."""

    parameters: int
    bytes_per_run: int
    seconds_per_run: float


@one_thread()
def estimate_cost(configurations: Sequence[Configuration], task_type: type[Task]) -> Cost:
    """The cost of a run trained in this ensemble, from its making, a few training steps and one validation."""
    start = time.perf_counter()
    ensemble = Ensemble(configurations, task_type)
    making = time.perf_counter() - start
    step = _median_seconds_per_step(ensemble)
    start = time.perf_counter()
    for task, outputs in zip(ensemble.tasks, ensemble.validate()[1], strict=True):
        task.validate(outputs)
    validation = time.perf_counter() - start
    epoch = (ensemble.steps_per_epoch * step + validation) / len(configurations)
    return Cost(
        count_parameters(task.model()),
        peak_memory(task, ensemble.batch_size) + task.train_inputs.nbytes + task.train_targets.nbytes,
        making / len(configurations) + ensemble.settings["epochs"] * epoch,
    )


@one_thread()
def time_runs(
    configurations: Sequence[Configuration],
    task_type: type[Task],
    records: Records,
    report: Callable[[int, int], None] = lambda done, blocks: None,
) -> None:
    """Time steps of one model per run and save them, in seconds, as `COLUMNS` names them.

    A training step includes its batch and augmentation; an inference is the forward pass of a batch. Both are taken
    with this project's kernels where they serve, and with torch's own ops (`native_...`).

    A seed is a block: its conditions, paths and modes take turns in random order, again in every round, and are saved
    together, so that their ratios are paired. A block that lacks a timing is measured whole. Nothing else may run on
    the machine meanwhile.
    """
    blocks: dict[int, list[Configuration]] = defaultdict(list)
    for configuration in configurations:
        blocks[configuration.seed].append(configuration)
    lacking = {seed: block for seed, block in blocks.items() if not all(map(records.has_timing, block))}
    for done, (seed, block) in enumerate(lacking.items()):
        report(done, len(lacking))
        for configuration, timing in zip(block, _time_block(block, task_type, random.Random(seed)), strict=True):
            records.save_timing(configuration, timing)
    report(len(lacking), len(lacking))


def _time_block(block: Sequence[Configuration], task_type: type[Task], order: random.Random) -> list[dict[str, float]]:
    """Median seconds per step of each run, by column."""
    competitors = {
        (place, column): step
        for place, configuration in enumerate(block)
        for column, step in _competitors(configuration, task_type).items()
    }
    for step in competitors.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for name in order.sample(list(competitors), len(competitors)):
            seconds[name].append(_turn(competitors[name]))
    return [{column: statistics.median(seconds[place, column]) for column in COLUMNS} for place in range(len(block))]


def _competitors(configuration: Configuration, task_type: type[Task]) -> dict[str, Step]:
    task = task_type(configuration.settings, configuration.seed)
    training, inference = _training_step(configuration, task), _inference(configuration, task)
    steps = (training, _natively(training), inference, _natively(inference))
    return dict(zip(COLUMNS, steps, strict=True))


def _training_step(configuration: Configuration, task: Task) -> Step:
    settings, model = configuration.settings, fresh_model(task, configuration.seed)
    optimizer = OF_TORCH[settings.get("optimizer", "adam")](model.parameters(), lr=settings["learning_rate"])
    generator = torch.Generator().manual_seed(configuration.seed)

    def step() -> None:
        rows = torch.randperm(len(task.train_inputs), generator=generator)[: settings["batch_size"]]
        loss = task.loss(model(task.augment(task.train_inputs[rows], generator)), task.train_targets[rows])
        optimizer.zero_grad()
        loss.backward()
        if settings.get("clip") is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()

    return step


def _inference(configuration: Configuration, task: Task) -> Step:
    model = fresh_model(task, configuration.seed).eval()
    batch = task.train_inputs[: configuration.settings["batch_size"]]
    return torch.no_grad()(lambda: model(batch))


def _natively(step: Step) -> Step:
    def run() -> None:
        with recurve.backend("native"):
            step()

    return run


def _turn(step: Step) -> float:
    """Mean seconds of steps in a row."""
    start, steps = time.perf_counter(), 0
    while True:
        step()
        steps += 1
        elapsed = time.perf_counter() - start
        if elapsed >= TURN_SECONDS:
            return elapsed / steps


def _median_seconds_per_step(ensemble: Ensemble, steps: int = 3) -> float:
    """Of an ensemble's training steps, batches and augmentation included, after one to warm up."""
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < steps + 1:
        for batch in ensemble.batches():
            ensemble.step(*batch)
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            if len(seconds) > steps:
                break
    return statistics.median(seconds[1:])
