"""Claims on planning: what is done is left out, ensembles fill the workers, and large plans are quick."""

import time
from dataclasses import replace

import planted
import pytest
from planted import STUDY, level

from ablations.design import Factor, Level
from ablations.plan import ENSEMBLE_LIMIT, duration, label, longest_first, plan_study, wall_seconds
from ablations.records import Records, Result


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path)


def sizes(plan):
    return [len(job.configurations) for jobs in plan.jobs.values() for job in jobs]


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


def test_runs_that_failed_are_planned_again(records):
    run = plan_study(STUDY, "quick", [], None, records, workers=1).runs[STUDY.baseline][1]
    records.save(run, Result("failed", {}, "planted"), environment={})
    assert run in plan_study(STUDY, "quick", [], None, records, workers=1).to_do[STUDY.baseline]


@pytest.mark.parametrize(
    ("workers", "seeds", "expected"),
    [(1, 6, [6, 6]), (2, 6, [6, 6]), (4, 6, [3, 3, 3, 3]), (99, 3, [1] * 6), (1, ENSEMBLE_LIMIT + 1, None)],
)
def test_ensembles_are_large_but_leave_no_worker_idle(records, workers, seeds, expected):
    plan = plan_study(STUDY, "quick", ["width=eight"], seeds, records, workers)
    assert sizes(plan) == (expected or [ENSEMBLE_LIMIT // 2, ENSEMBLE_LIMIT // 2 + 1] * 2)


def test_a_measured_plan_prices_every_job(records):
    plan = plan_study(STUDY, "smoke", ["width=eight"], None, records, workers=1).measured()
    jobs = longest_first([plan])
    assert [job.seconds for job in jobs] == sorted((job.seconds for job in jobs), reverse=True)
    assert wall_seconds(jobs, workers=1) == pytest.approx(sum(job.seconds for job in jobs))
    assert wall_seconds(jobs, workers=2) == max(job.seconds for job in jobs)


def test_a_condition_that_cannot_be_measured_is_still_planned(records):
    plan = plan_study(STUDY, "smoke", ["trouble=raises"], 2, records, workers=1).measured()
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
