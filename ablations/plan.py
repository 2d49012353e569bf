"""From a study, a preset, levels and seeds to the jobs still to do, and what they will cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ablations.design import Condition, Study, Task, choose_levels, one_factor_at_a_time
from ablations.records import Configuration, Records

if TYPE_CHECKING:
    from rich.table import Table

    from ablations.training import Cost

ENSEMBLE_LIMIT = 32  # runs trained together at most: bounds the memory of a job


@dataclass(frozen=True)
class Job:
    """Runs of one condition that are trained together."""

    study: str
    label: str
    task: type[Task]
    configurations: tuple[Configuration, ...]
    seconds: float | None = None  # expected


@dataclass(frozen=True)
class Plan:
    """Every run asked for, by condition, and the jobs for those not done yet, longest first."""

    study: Study
    preset: str
    runs: Mapping[Condition, tuple[Configuration, ...]]
    to_do: Mapping[Condition, tuple[Configuration, ...]]
    jobs: Mapping[Condition, tuple[Job, ...]]
    costs: Mapping[Condition, Cost | None] = field(default_factory=dict)

    def measured(self) -> Plan:
        """The same plan with costs, each measured on a few steps of the condition's first job."""
        from ablations.training import estimate_cost

        costs: dict[Condition, Cost | None] = {}
        for condition, runs in self.runs.items():
            jobs = self.jobs[condition]
            try:
                costs[condition] = estimate_cost(jobs[0].configurations if jobs else runs[:1], self.study.task)
            except Exception:  # noqa: BLE001 -- the run itself will record what a study raises
                costs[condition] = None
        return replace(self, costs=costs, jobs={c: _priced(jobs, costs[c]) for c, jobs in self.jobs.items()})

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=f"{self.study.name}, preset {self.preset}: {self.study.title}", title_justify="left")
        table.add_column("condition")
        for column in ("parameters", "runs", "done", "to do", "ensembles", "time"):
            table.add_column(column, justify="right")
        for condition, runs in self.runs.items():
            jobs, cost, to_do = self.jobs[condition], self.costs.get(condition), len(self.to_do[condition])
            table.add_row(
                label(self.study, condition),
                f"{cost.parameters:,}" if cost else "?",
                *map(str, (len(runs), len(runs) - to_do, to_do, len(jobs))),
                duration(sum(job.seconds or 0.0 for job in jobs)) if cost else "?",
            )
        return table


def plan_study(
    study: Study, preset: str, words: Sequence[str], seeds: int | None, records: Records, workers: int
) -> Plan:
    """Plan the conditions that `words` (`factor=level,level`) choose, with seeds 0 to `seeds` - 1.

    Without `seeds` the preset's number is taken. Raises `DesignError` for a word that names nothing.
    """
    conditions = one_factor_at_a_time(study, choose_levels(study, preset, words))
    count = seeds or study.preset(preset).seeds
    runs = {condition: _runs(study, preset, condition, count) for condition in conditions}
    to_do = {c: tuple(run for run in of_condition if not records.is_finished(run)) for c, of_condition in runs.items()}
    jobs = {
        condition: tuple(Job(study.name, label(study, condition), study.task, part) for part in parts)
        for condition, parts in _ensembles(to_do, workers).items()
    }
    return Plan(study, preset, runs, to_do, jobs)


def wall_seconds(jobs: Sequence[Job], workers: int) -> float:
    """Expected time until the last job ends, when each goes to the first free worker."""
    busy = [0.0] * workers
    for job in jobs:
        busy[busy.index(min(busy))] += job.seconds or 0.0
    return max(busy)


def longest_first(plans: Sequence[Plan]) -> list[Job]:
    """All jobs of the plans in the order in which they should start."""
    jobs = [job for plan in plans for of_condition in plan.jobs.values() for job in of_condition]
    return sorted(jobs, key=lambda job: job.seconds or 0.0, reverse=True)


def label(study: Study, condition: Condition) -> str:
    """What a condition changes: `cell=gru`, or `baseline`."""
    baseline = dict(study.baseline.levels)
    changed = [f"{factor}={level}" for factor, level in condition.levels if level != baseline[factor]]
    return " ".join(changed) or "baseline"


def duration(seconds: float) -> str:
    """Seconds in words: `0.3 s`, `8 s`, `3 min`, `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _runs(study: Study, preset: str, condition: Condition, seeds: int) -> tuple[Configuration, ...]:
    settings, levels = study.settings(preset, condition), dict(condition.levels)
    return tuple(
        Configuration(study.name, study.version, study.task.data_version, preset, settings, levels, seed)
        for seed in range(seeds)
    )


def _ensembles(
    to_do: Mapping[Condition, tuple[Configuration, ...]], workers: int
) -> dict[Condition, list[tuple[Configuration, ...]]]:
    """Runs of a condition together, at most `ENSEMBLE_LIMIT`, in smaller parts while workers would stay idle."""
    longest = max(map(len, to_do.values()), default=0)
    size = min(longest, ENSEMBLE_LIMIT)
    while size > 1 and sum(-(-len(runs) // size) for runs in to_do.values()) < workers:
        size -= 1
    return {condition: _even_parts(runs, size) for condition, runs in to_do.items()}


def _even_parts(runs: tuple[Configuration, ...], size: int) -> list[tuple[Configuration, ...]]:
    """As few parts of at most `size` runs as will do, as even as can be."""
    parts = -(-len(runs) // max(size, 1))
    return [runs[len(runs) * part // parts : len(runs) * (part + 1) // parts] for part in range(parts)]


def _priced(jobs: Sequence[Job], cost: Cost | None) -> tuple[Job, ...]:
    if cost is None:
        return tuple(jobs)
    return tuple(replace(job, seconds=cost.seconds_per_run * len(job.configurations)) for job in jobs)
