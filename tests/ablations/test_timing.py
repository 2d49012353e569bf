"""Claims on costs and timings: what is counted, what is measured, and that a pass is paired."""

import planted
import pytest
from planted import PlantedTask

from ablations.plan import plan_study
from ablations.records import Configuration, Records
from ablations.timing import COLUMNS, estimate_cost, time_runs
from ablations.training import train


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path)
    records.declare(planted.STUDY.declaration())
    return records


def test_cost_counts_the_parameters_of_one_model():
    runs = [Configuration("planted", "1", "1", "quick", planted.DEFAULTS, {}, seed) for seed in range(3)]
    cost = estimate_cost(runs, PlantedTask)
    assert cost.parameters == 3 * 4 + 4 + 4 + 4 + 1
    assert cost.bytes_per_run > cost.parameters * 8 * 4
    assert cost.seconds_per_run > 0


def test_a_record_holds_ours_and_native_times_of_training_and_inference(records):
    run = Configuration("planted", "1", "1", "quick", planted.DEFAULTS, {}, 0)
    train([run], PlantedTask, records)
    time_runs([run], PlantedTask, records)
    (row,) = records.table().to_dict("records")
    assert all(0 < row[column] < 1 for column in COLUMNS)


def test_timings_are_taken_by_whole_blocks(records, monkeypatch):
    saved = []
    monkeypatch.setattr(
        records,
        "save_timing",
        lambda run, timing, save=records.save_timing: (saved.append(run.seed), save(run, timing)),
    )
    plan = plan_study(planted.STUDY, "smoke", ["width=eight"], 3, records, workers=1)
    runs = [run for of_condition in plan.runs.values() for run in of_condition]
    time_runs(runs, PlantedTask, records)
    assert sorted(saved) == [0, 0, 1, 1, 2, 2]
    saved.clear()
    time_runs(runs, PlantedTask, records)
    assert saved == []
    (records.folder(runs[1]) / "timing.json").unlink()
    time_runs(runs, PlantedTask, records)
    assert saved == [1, 1]
