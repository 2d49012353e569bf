"""Claims on planning: what is done is left out, ensembles fill the workers, and large plans are quick."""

import time
from dataclasses import replace

import planted
import pytest
from planted import DEFAULTS, STUDY, level

from ablations import devices, processes
from ablations.design import DesignError, Factor, Level
from ablations.devices import MEMORY_SHARE, Memory
from ablations.plan import (
    ENSEMBLE_LIMIT,
    duration,
    label,
    longest_first,
    plan_failed,
    plan_study,
    strongest_levels,
    wall_seconds,
)
from ablations.records import Records, Result
from ablations.timing import Cost

STUDY_WITH_SLOW = replace(
    STUDY, presets={"quick": replace(STUDY.presets["quick"], levels={"trouble": ("none", "slow")})}
)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path)


def sizes(plan):
    return [len(job.configurations) for job in plan.jobs]


def test_the_baseline_and_the_named_levels_are_planned(records):
    plan = plan_study(STUDY, "quick", ["width=eight"], None, records, workers=1)
    assert [label(STUDY, condition) for condition in plan.runs] == ["baseline", "width=eight"]
    assert sizes(plan) == [3, 3]


def test_without_words_the_preset_decides_the_levels(records):
    plan = plan_study(STUDY, "quick", [], None, records, workers=1)
    assert [label(STUDY, condition) for condition in plan.runs] == ["baseline", "width=eight", "jitter=on"]


def test_runs_that_are_done_are_left_out(records):
    run = next(iter(plan_study(STUDY, "quick", [], None, records, workers=1).runs.values()))[1]
    records.save(run, Result("done", {}), environment={})
    plan = plan_study(STUDY, "quick", [], None, records, workers=1)
    assert [job.seed for job in plan.to_do[STUDY.baseline]] == [0, 2]


def test_runs_that_failed_are_planned_when_asked_for_only(records):
    run = plan_study(STUDY, "quick", [], None, records, workers=1).runs[STUDY.baseline][1]
    records.save(run, Result("failed", {}, "planted"), environment={})
    plan = plan_study(STUDY, "quick", [], None, records, workers=1)
    assert run not in plan.to_do[STUDY.baseline]
    assert plan.failed == 1
    (again,) = plan_failed(STUDY, records, workers=1)
    assert again.preset == "quick"
    assert again.to_do == {STUDY.baseline: (run,)}
    assert [job.configurations for job in again.jobs] == [(run,)]


def test_runs_whose_shapes_agree_train_together_across_conditions(records):
    plan = plan_study(STUDY, "quick", ["jitter=on", "width=eight"], 3, records, workers=1)
    assert sorted(sizes(plan)) == [3, 6]
    together = max(plan.jobs, key=lambda job: len(job.configurations))
    assert {run.levels["jitter"] for run in together.configurations} == {"on", "off"}
    assert together.label == "baseline and 1 of its shape"


@pytest.mark.parametrize(("device", "workers", "most"), [("cpu", 1, 8), ("cpu", 2, 4), ("cuda", 2, 8)])
def test_memory_decides_how_many_train_at_once(records, monkeypatch, device, workers, most):
    """On a GPU an ensemble may fill it: how many share it is measured on the first."""
    plan = plan_study(STUDY, "smoke", [], 16, records, workers=1)
    monkeypatch.setattr(processes.Apart, "call", lambda *arguments: Cost(5, 1000, 0.5))
    monkeypatch.setattr(devices, "memory", lambda: Memory(int(8500 / MEMORY_SHARE) + 10**6, 10**6))
    monkeypatch.setattr(devices, "name", lambda: device)
    assert max(sizes(plan.measured(workers))) == most


def save_done(records, words, errors, seeds=2):
    """One-factor runs whose errors are given by label."""
    plan = plan_study(STUDY, "quick", words, seeds, records, workers=1)
    for condition, runs in plan.runs.items():
        for run in runs:
            error = errors[label(STUDY, condition)] + run.seed
            records.save(run, Result("done", {"error": error}), environment={})


def test_the_design_pairs_crosses_the_strongest_factors_on_record(records):
    errors = {"baseline": 0.5, "width=eight": 0.4, "jitter=on": 0.9, "trouble=slow": 0.51}
    save_done(records, ["width=eight", "jitter=on", "trouble=slow"], errors)
    assert strongest_levels(STUDY_WITH_SLOW, "quick", records, 2) == {"jitter": ("on",), "width": ("eight",)}
    plan = plan_study(STUDY_WITH_SLOW, "quick", [], 2, records, 1, design="pairs", strongest=2)
    names = [label(STUDY, condition) for condition, runs in plan.to_do.items() if runs]
    assert names == ["width=eight jitter=on"]


def test_the_design_pairs_says_what_it_lacks(records):
    with pytest.raises(DesignError, match=r"on record are 0 factors. Run `ablate run planted --preset quick` first"):
        plan_study(STUDY, "quick", [], 2, records, 1, design="pairs")


def test_designs_may_be_factorial_or_listed(records):
    crossed = plan_study(STUDY, "quick", ["width=eight", "jitter=on"], 1, records, 1, design="factorial")
    words = ["width=eight+jitter=on"]
    named = plan_study(STUDY, "quick", words, 1, records, 1, design="list")
    assert [label(STUDY, c) for c in crossed.runs] == ["baseline", "jitter=on", "width=eight", "width=eight jitter=on"]
    assert [label(STUDY, c) for c in named.runs] == ["baseline", "width=eight jitter=on"]


@pytest.mark.parametrize(
    ("workers", "seeds", "expected"),
    [(1, 6, [6, 6]), (2, 6, [6, 6]), (4, 6, [3, 3, 3, 3]), (99, 3, [1] * 6), (1, ENSEMBLE_LIMIT + 1, None)],
)
def test_ensembles_are_large_but_leave_no_worker_idle(records, workers, seeds, expected):
    plan = plan_study(STUDY, "quick", ["width=eight"], seeds, records, workers)
    assert sizes(plan) == (expected or [ENSEMBLE_LIMIT // 2, ENSEMBLE_LIMIT // 2 + 1] * 2)


def test_a_measured_plan_prices_every_job(records):
    plan = plan_study(STUDY, "smoke", ["width=eight"], None, records, workers=1).measured(1)
    jobs = longest_first([plan])
    assert [job.seconds for job in jobs] == sorted((job.seconds for job in jobs), reverse=True)
    assert wall_seconds(jobs, workers=1) == pytest.approx(sum(job.seconds for job in jobs))
    assert wall_seconds(jobs, workers=2) == max(job.seconds for job in jobs)


@pytest.mark.parametrize(("most", "each"), [(200, 3), (6, 2), (1, 1)])
def test_the_more_conditions_the_fewer_runs_of_each_are_measured(records, monkeypatch, most, each):
    measured = []
    monkeypatch.setattr("ablations.plan.MEASURED", most)
    monkeypatch.setattr("ablations.plan._measure", lambda sample, *_: measured.append(len(sample)))
    plan_study(STUDY, "quick", [], None, records, workers=1).measured(workers=1)
    assert measured == [each] * 3


def test_a_condition_that_cannot_be_measured_is_still_planned(records):
    with pytest.warns(UserWarning, match="trouble=raises is planned without .* planted failure of seed 1"):
        plan = plan_study(STUDY, "smoke", ["trouble=raises"], 2, records, workers=1).measured(1)
    costs = {label(STUDY, condition): cost for condition, cost in plan.costs.items()}
    assert costs["trouble=raises"] is None
    assert sizes(plan) == [2, 2]


def test_a_setting_that_training_does_not_know_ends_the_plan_with_what_is_allowed(records):
    study = replace(
        STUDY, presets={"smoke": replace(STUDY.presets["smoke"], settings=DEFAULTS | {"schedule": "steep"})}
    )
    with pytest.raises(DesignError, match="schedule 'steep' is unknown; allowed are constant, cosine, one-cycle"):
        plan_study(study, "smoke", ["width=eight"], 2, records, workers=1).measured(1)


def test_trial_steps_that_kill_their_process_cost_only_their_own_estimate(records):
    deadly = Level("deadly", {"kill_for": [0]}, planted.hypothesis())
    trouble = STUDY.factors[-1]
    study = replace(STUDY, factors=(*STUDY.factors[:-1], replace(trouble, levels=(*trouble.levels, deadly))))
    words = ["trouble=kills,deadly", "width=eight"]
    with pytest.warns(UserWarning, match="trouble=deadly is planned .*SIGKILL, .* when memory runs out") as warned:
        plan = plan_study(study, "smoke", words, 2, records, workers=1).measured(1)
    assert len(warned) == 1
    costs = {label(study, condition): cost for condition, cost in plan.costs.items()}
    assert [name for name, cost in costs.items() if cost is None] == ["trouble=deadly"]
    assert costs["trouble=kills"].parameters == costs["baseline"].parameters  # by its first run, which is harmless


def test_an_ensemble_that_memory_does_not_serve_is_priced_by_one_run(records, monkeypatch):
    def little_memory(sample, task):
        if len(sample) > 1:
            raise MemoryError
        return Cost(5, 1000, 0.5)

    monkeypatch.setattr(processes.Apart, "call", lambda self, function, *arguments: little_memory(*arguments))
    plan = plan_study(STUDY, "smoke", [], 2, records, workers=1).measured(1)
    assert {cost.seconds_per_run for cost in plan.costs.values()} == {0.5}


def test_ten_thousand_runs_are_planned_in_two_seconds(records):
    levels = (Level("none", {"width": 0}), *(level(f"w{width}", width=width) for width in range(1, 100)))
    study = replace(STUDY, factors=(Factor("width", "width", levels),))
    study = replace(study, presets={"quick": replace(STUDY.presets["quick"], levels={})})
    start = time.process_time()
    plan = plan_study(study, "quick", [], 100, records, workers=2)
    assert time.process_time() - start < 2
    assert sum(sizes(plan)) == 10_000


@pytest.mark.parametrize(("seconds", "words"), [(0.31, "0.3 s"), (8.4, "8 s"), (100, "2 min"), (9000, "2.5 h")])
def test_durations_are_told_in_the_unit_people_use(seconds, words):
    assert duration(seconds) == words


def test_settings_of_a_run_are_the_presets_overlaid_by_the_levels(records):
    runs = plan_study(STUDY, "quick", ["width=eight"], 1, records, workers=1).runs
    assert [run.settings for (run,) in runs.values()] == [planted.DEFAULTS, planted.DEFAULTS | {"width": 8}]
