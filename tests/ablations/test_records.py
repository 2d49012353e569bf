"""Claims on records: a run is done when its result is there, and nothing torn or half written counts."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import STUDY

from ablations.records import Configuration, Records, Result

RUN = Configuration("planted", "1", "1", "quick", {"width": 4}, {"width": "four"}, seed=0)
CURVE = pd.DataFrame({"epoch": [1, 2], "validation_loss": [0.5, 0.25]})


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path)
    records.declare(STUDY.declaration())
    return records


def save(records, run=RUN, status="done"):
    arrays = {"outputs": np.arange(3.0)}
    records.save(run, Result(status, {"error": 0.5}), environment={"torch": "2"}, curve=CURVE, predictions=arrays)


def test_what_is_saved_is_read_back(records):
    save(records)
    records.save_timing(RUN, {"seconds_per_step": 0.01})
    (row,) = records.table().to_dict("records")
    assert row == {
        "study": "planted",
        "study_version": "1",
        "preset": "quick",
        "seed": 0,
        "key": RUN.key,
        "status": "done",
        "message": "",
        "width": "four",
        "error": 0.5,
        "seconds_per_step": 0.01,
    }
    pd.testing.assert_frame_equal(records.curves("planted"), CURVE.assign(key=RUN.key))
    np.testing.assert_array_equal(records.predictions("planted", RUN.key)["outputs"], np.arange(3.0))
    assert records.environment("planted", RUN.key) == {"torch": "2"}
    assert records.configurations("planted", "1") == [RUN]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"settings": {"width": 5}}, {"study_version": "2"}, {"data_version": "2"}, {"study": "other"}],
)
def test_whatever_decides_a_result_changes_the_key(change):
    assert replace(RUN, **change).key != RUN.key


def test_the_presets_name_and_the_order_of_settings_do_not_change_the_key():
    run = replace(RUN, settings={"width": 4, "depth": 1})
    assert replace(run, settings={"depth": 1, "width": 4}, preset="full").key == run.key


@pytest.mark.parametrize(("status", "finished"), [("done", True), ("diverged", True), ("failed", False)])
def test_a_run_is_finished_unless_it_failed(records, status, finished):
    save(records, status=status)
    assert records.is_finished(RUN) is finished
    assert bool(records.configurations("planted", "1")) is finished


@pytest.mark.parametrize("name", ["config.json", "environment.json", "curve.csv", "predictions.npz", "result.json"])
def test_a_crash_before_any_file_leaves_the_run_undone_and_no_torn_file(records, monkeypatch, name):
    replace_file = os.replace

    def crash(source, target):
        if os.path.basename(target) == name:
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(records)
    assert not records.is_finished(RUN)
    assert records.table().empty
    assert not (records.folder(RUN) / name).exists()
    assert not list(records.folder(RUN).glob(".*"))


def test_a_torn_result_is_said_and_the_run_is_done_again(records):
    save(records)
    result = records.folder(RUN) / "result.json"
    result.write_text(result.read_text()[:9])
    with pytest.warns(UserWarning, match="is torn and is taken as absent"):
        assert not records.is_finished(RUN)
    with pytest.warns(UserWarning, match="is torn"):
        assert records.table().empty


def test_a_study_without_runs_says_how_to_make_some(records):
    with pytest.raises(FileNotFoundError, match="ablate run missing"):
        records.declaration("missing")


def test_the_declaration_read_back_is_the_one_written(records):
    assert records.studies() == ["planted"]
    assert records.declaration("planted")["question"] == STUDY.question
    assert records.declaration("planted", "1")["version"] == "1"
