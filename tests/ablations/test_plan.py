"""Claims on planning: what is done is left out, ensembles fill the workers, and large plans are quick."""

import time
from dataclasses import replace
from types import SimpleNamespace

import planted
import pytest
from planted import STUDY, level

from ablations.design import DesignError, Factor, Level
from ablations.plan import (
    ENSEMBLE_LIMIT,
    MEMORY_SHARE,
    duration,
    label,
    longest_first,
    plan_failed,
    plan_study,
    strongest_levels,
    wall_seconds,
)
from ablations.records import Records, Result

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


def test_memory_decides_how_many_train_at_once(records, monkeypatch):
    plan = plan_study(STUDY, "smoke", [], 16, records, workers=1)
    assert sizes(plan) == [16, 16, 16] or sizes(plan) == [32, 16]
    bytes_per_run = plan.measured(1).costs[STUDY.baseline].bytes_per_run
    free = SimpleNamespace(available=int(4.5 * bytes_per_run / MEMORY_SHARE))
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    assert all(size <= 4 for size in sizes(plan.measured(1)))
    assert all(size <= 2 for size in sizes(plan.measured(2)))


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


def test_a_condition_that_cannot_be_measured_is_still_planned(records):
    plan = plan_study(STUDY, "smoke", ["trouble=raises"], 2, records, workers=1).measured(1)
    costs = {label(STUDY, condition): cost for condition, cost in plan.costs.items()}
    assert costs["trouble=raises"] is None
    assert sizes(plan) == [2, 2]


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
