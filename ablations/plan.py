"""From a study, a preset, a design and seeds to the jobs still to do, and what they will cost."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Literal

from ablations import devices
from ablations.design import (
    Condition,
    DesignError,
    Study,
    Task,
    all_pairs,
    choose_levels,
    full_factorial,
    listed,
    one_factor_at_a_time,
    preset_levels,
)
from ablations.devices import MEMORY_SHARE
from ablations.processes import Apart, Died
from ablations.records import Configuration, Records, Status

if TYPE_CHECKING:
    from rich.table import Table

    from ablations.timing import Cost

ENSEMBLE_LIMIT = 32  # runs trained together at most, even where memory allows more: a crash costs no more than these
MEASURED_TOGETHER = 8  # runs of a condition at most: enough to cost about as much each as in a full ensemble
MEASURED = 200  # runs at most of all conditions, but one of each
# Settings that training keeps apart for each model, whatever the task.
PER_MODEL = frozenset({"learning_rate", "rate_scale", "clip"})

Design = Literal["one-factor", "factorial", "pairs", "list"]


@dataclass(frozen=True)
class Job:
    """Runs that are trained together: of one condition, or of several whose models have the same shapes."""

    study: str
    label: str
    task: type[Task]
    configurations: tuple[Configuration, ...]
    seconds: float | None = None  # expected
    bytes: int | None = None  # likewise


@dataclass(frozen=True)
class Plan:
    """Every run asked for, by condition, those not done yet, and the jobs that do these."""

    study: Study
    preset: str
    runs: Mapping[Condition, tuple[Configuration, ...]]
    to_do: Mapping[Condition, tuple[Configuration, ...]]
    jobs: tuple[Job, ...]
    failed: int = 0  # of the runs on record
    costs: Mapping[Condition, Cost | None] = field(default_factory=dict)

    def measured(self, workers: int) -> Plan:
        """The same plan with costs, each measured on a few steps of an ensemble of the condition.

        They are taken in a process of their own, so that one that dies costs its estimate only, which is said. Jobs
        that would not fit into memory beside those of the other workers, or into a GPU alone, are divided.
        """
        on_gpu = devices.name() == "cuda"
        together = max(min(MEASURED_TOGETHER, MEASURED // len(self.runs)), 1)
        costs: dict[Condition, Cost | None] = {}
        with Apart() as process:
            for condition, runs in self.runs.items():
                sample = (self.to_do[condition] or runs[:1])[:together]
                costs[condition] = _measure(sample, self.study, label(self.study, condition), process)
        if not any(costs.values()):
            return replace(self, costs=costs)
        memory = devices.memory()
        share = MEMORY_SHARE * (memory.total - memory.used) / (1 if on_gpu else workers)
        by_run = {run.key: costs[condition] for condition, runs in self.to_do.items() for run in runs}
        jobs = tuple(_priced(part, by_run) for job in self.jobs for part in _fitting(job, by_run, share))
        return replace(self, costs=costs, jobs=jobs)

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=f"{self.study.name}, preset {self.preset}: {self.study.title}", title_justify="left")
        table.add_column("condition")
        for column in ("parameters", "runs", "on record", "to do", "ensembles", "time"):
            table.add_column(column, justify="right")
        for condition, runs in self.runs.items():
            cost, to_do = self.costs.get(condition), self.to_do[condition]
            keys = {run.key for run in to_do}
            ensembles = sum(any(run.key in keys for run in job.configurations) for job in self.jobs)
            table.add_row(
                label(self.study, condition),
                f"{cost.parameters:,}" if cost else "?",
                *map(str, (len(runs), len(runs) - len(to_do), len(to_do), ensembles)),
                duration(cost.seconds_per_run * len(to_do)) if cost else "?",
            )
        return table


def plan_study(
    study: Study,
    preset: str,
    words: Sequence[str],
    seeds: int | None,
    records: Records,
    workers: int,
    design: Design | None = None,
    strongest: int = 3,
) -> Plan:
    """Plan the conditions that the design makes of the words, with seeds 0 to `seeds` - 1.

    Words are `factor=level,level`, for the design "list" `factor=level+factor=level`; without words, all levels that
    the preset allows, without `seeds` the preset's number and without a design the study's is taken. The design
    "pairs" takes the `strongest` factors of the runs on record. Runs on record are not done again, not even those that
    failed: see `plan_failed`.
    Raises `DesignError` for a word that names nothing, and where a design lacks what it needs.
    """
    conditions = _conditions(study, preset, words, records, design, strongest)
    count = seeds or study.preset(preset).seeds
    runs = {condition: _runs(study, preset, condition, count) for condition in conditions}
    statuses = {run.key: records.status(run) for of_condition in runs.values() for run in of_condition}
    to_do = {c: tuple(run for run in of_condition if not statuses[run.key]) for c, of_condition in runs.items()}
    plan = _plan(study, preset, runs, to_do, workers)
    return replace(plan, failed=sum(status == "failed" for status in statuses.values()))


def plan_failed(study: Study, records: Records, workers: int) -> list[Plan]:
    """A plan per preset for the failed runs of the study's present version."""
    found: dict[str, dict[Condition, list[Configuration]]] = defaultdict(lambda: defaultdict(list))
    failed: tuple[Status, ...] = ("failed",)
    for run in records.configurations(study.name, study.version, failed):
        if run.data_version == study.task.data_version(run.settings):
            condition = Condition(tuple((factor.name, run.levels[factor.name]) for factor in study.factors))
            found[run.preset][condition].append(run)
    plans = []
    for preset, by_condition in found.items():
        runs = {condition: tuple(of_condition) for condition, of_condition in by_condition.items()}
        plans.append(_plan(study, preset, runs, runs, workers))
    return plans


def strongest_levels(study: Study, preset: str, records: Records, count: int) -> dict[str, tuple[str, ...]]:
    """The `count` factors that move the primary response most, each with the level that does.

    Strength is the mean difference to the baseline over seeds, in the one-factor runs on record. Raises `DesignError`
    if fewer factors have such runs.
    """
    values = _primary_values(study, preset, records)
    baseline = values.get(study.baseline, {})
    strengths: dict[str, tuple[float, str]] = {}
    for condition in one_factor_at_a_time(study, preset_levels(study, preset))[1:]:
        own = values.get(condition, {})
        differences = [own[seed] - baseline[seed] for seed in own.keys() & baseline.keys()]
        if differences:
            ((factor, level),) = _changed(study, condition)
            strength = abs(sum(differences) / len(differences))
            strengths[factor] = max(strengths.get(factor, (0.0, level)), (strength, level))
    if len(strengths) < count:
        raise DesignError(
            f"the {count} strongest factors are found from finished runs of preset {preset} that vary one factor at a "
            f"time; on record are {len(strengths)} factors. Run `ablate run {study.name} --preset {preset}` first, "
            "ask for fewer with --strongest, or name factors and levels"
        )
    ranked = sorted(strengths, key=lambda factor: strengths[factor], reverse=True)
    return {factor: (strengths[factor][1],) for factor in ranked[:count]}


def wall_seconds(jobs: Sequence[Job], workers: int) -> float:
    """Expected time until the last job ends, when each goes to the first free worker."""
    busy = [0.0] * workers
    for job in jobs:
        busy[busy.index(min(busy))] += job.seconds or 0.0
    return max(busy)


def longest_first(plans: Sequence[Plan]) -> list[Job]:
    """All jobs of the plans in the order in which they should start."""
    return sorted((job for plan in plans for job in plan.jobs), key=lambda job: job.seconds or 0.0, reverse=True)


def label(study: Study, condition: Condition) -> str:
    """What a condition changes: `cell=gru`, or `baseline`."""
    return " ".join(f"{factor}={level}" for factor, level in _changed(study, condition)) or "baseline"


def duration(seconds: float) -> str:
    """Seconds in words: `0.3 s`, `8 s`, `3 min`, `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _measure(sample: tuple[Configuration, ...], study: Study, name: str, process: Apart) -> Cost | None:
    """What a run of the sample costs, or of its first run alone if all do not fit into memory."""
    from ablations.timing import estimate_cost

    try:
        return process.call(estimate_cost, sample, study.task)
    except DesignError:
        raise
    except (Died, MemoryError) as error:
        if len(sample) > 1:
            return _measure(sample[:1], study, name, process)
        why = f"the process {error}" if isinstance(error, Died) else "memory ran out"
    except Exception as error:  # noqa: BLE001 -- the run itself will record what a study raises
        why = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"{study.name} {name} is planned without an estimate, for its trial steps failed: {why}", stacklevel=2
    )
    return None


def _conditions(
    study: Study, preset: str, words: Sequence[str], records: Records, design: Design | None, strongest: int
) -> list[Condition]:
    study.preset(preset)
    if design == "list":
        return listed(study, words)
    chosen = choose_levels(study, words) if words else preset_levels(study, preset)
    if design == "pairs":
        return all_pairs(study, chosen if words else strongest_levels(study, preset, records, strongest))
    if design is None and study.design is not None:
        return study.design(study, chosen)
    return (full_factorial if design == "factorial" else one_factor_at_a_time)(study, chosen)


def _primary_values(study: Study, preset: str, records: Records) -> dict[Condition, dict[int, float]]:
    """The primary response of the study's done runs, by condition and seed."""
    values: dict[Condition, dict[int, float]] = defaultdict(dict)
    for row in records.table(study.name).to_dict("records"):
        if (row["preset"], row["study_version"], row["status"]) == (preset, study.version, "done"):
            condition = Condition(tuple((factor.name, row[factor.name]) for factor in study.factors))
            if row["data_version"] == study.task.data_version(study.settings(preset, condition)):
                values[condition][row["seed"]] = row[study.responses[0].name]
    return values


def _changed(study: Study, condition: Condition) -> list[tuple[str, str]]:
    """The factors that are not at their baseline, with their levels."""
    baseline = dict(study.baseline.levels)
    return [(factor, level) for factor, level in condition.levels if level != baseline[factor]]


def _runs(study: Study, preset: str, condition: Condition, seeds: int) -> tuple[Configuration, ...]:
    settings, levels = study.settings(preset, condition), dict(condition.levels)
    data_version = study.task.data_version(settings)
    return tuple(
        Configuration(study.name, study.version, data_version, preset, settings, levels, seed) for seed in range(seeds)
    )


def _plan(
    study: Study,
    preset: str,
    runs: Mapping[Condition, tuple[Configuration, ...]],
    to_do: Mapping[Condition, tuple[Configuration, ...]],
    workers: int,
) -> Plan:
    """The plan whose jobs are ensembles as large as can be while no worker stays idle."""
    alike: dict[str, dict[Condition, tuple[Configuration, ...]]] = defaultdict(dict)
    for condition, of_condition in to_do.items():
        if of_condition:
            alike[_shape(of_condition[0], study.task)][condition] = of_condition
    groups = [(list(group), tuple(chain.from_iterable(group.values()))) for group in alike.values()]
    size = min(max((len(together) for _, together in groups), default=1), ENSEMBLE_LIMIT)
    while size > 1 and sum(-(-len(together) // size) for _, together in groups) < workers:
        size -= 1
    jobs = tuple(
        Job(study.name, _common_label(study, conditions, part), study.task, part)
        for conditions, together in groups
        for part in _even_parts(together, size)
    )
    return Plan(study, preset, runs, to_do, jobs)


def _shape(configuration: Configuration, task: type[Task]) -> str:
    """What runs must have in common to be trained together."""
    settings = {k: v for k, v in configuration.settings.items() if k not in PER_MODEL | task.per_model}
    return json.dumps(settings, sort_keys=True)


def _common_label(study: Study, conditions: Sequence[Condition], runs: Sequence[Configuration]) -> str:
    levels = {frozenset(run.levels.items()) for run in runs}
    names = [label(study, condition) for condition in conditions if frozenset(condition.levels) in levels]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} of its shape"


def _even_parts(runs: tuple[Configuration, ...], size: int) -> list[tuple[Configuration, ...]]:
    """As few parts of at most `size` runs as will do, as even as can be."""
    parts = -(-len(runs) // size)
    return [runs[len(runs) * part // parts : len(runs) * (part + 1) // parts] for part in range(parts)]


def _fitting(job: Job, costs: Mapping[str, Cost | None], memory: float) -> list[Job]:
    """The job in as few even parts as fit into so many bytes each; a run alone is always tried."""
    largest = max((cost.bytes_per_run for run in job.configurations if (cost := costs[run.key])), default=1)
    at_once = max(int(memory // largest), 1)
    return [replace(job, configurations=part) for part in _even_parts(job.configurations, at_once)]


def _priced(job: Job, costs: Mapping[str, Cost | None]) -> Job:
    found = [costs[run.key] for run in job.configurations]
    if any(cost is None for cost in found):
        return job
    seconds, size = (sum(getattr(cost, what) for cost in found) for what in ("seconds_per_run", "bytes_per_run"))
    return replace(job, seconds=seconds, bytes=size)
