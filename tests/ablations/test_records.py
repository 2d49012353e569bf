"""Claims on records: a run is done when its result is there, and nothing torn or half written counts."""

import errno
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import STUDY

from ablations.design import one_factor_at_a_time
from ablations.records import Configuration, Records, RecordsError, Result, TornRecord

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
        "data_version": "1",
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
    [
        {"seed": 1},
        {"settings": {"width": 5}},
        {"preset": "full"},
        {"study_version": "2"},
        {"data_version": "2"},
        {"study": "other"},
    ],
)
def test_whatever_decides_a_result_changes_the_key(change):
    assert replace(RUN, **change).key != RUN.key


def test_the_order_of_settings_does_not_change_the_key():
    run = replace(RUN, settings={"width": 4, "depth": 1})
    assert replace(run, settings={"depth": 1, "width": 4}).key == run.key


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


FILES = ["config.json", "environment.json", "curve.csv", "predictions.npz", "result.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_record_with_a_torn_file_is_said_not_counted_and_done_again(records, name, kept):
    save(records)
    torn = records.folder(RUN) / name
    torn.write_bytes(torn.read_bytes()[: int(kept * torn.stat().st_size)])
    with pytest.warns(UserWarning, match=f"{name} is torn and is taken as absent"):
        assert not records.is_finished(RUN)
    with pytest.warns(UserWarning, match="is torn"):
        assert records.table().empty
    with warnings.catch_warnings(action="ignore"), records.claim([RUN]):
        assert torn.with_name(f"{name}.torn").exists()
        save(records)
    assert records.is_finished(RUN)


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_record_that_lacks_a_file_is_not_finished(records, name):
    save(records)
    (records.folder(RUN) / name).unlink()
    with pytest.warns(UserWarning, match=name):
        assert not records.is_finished(RUN)


def test_a_damaged_configuration_of_the_same_size_is_said_and_its_run_done_again(records):
    save(records)
    config = records.folder(RUN) / "config.json"
    config.write_bytes(b"\xff" * config.stat().st_size)
    with pytest.warns(TornRecord, match=r"config.json is torn"):
        assert records.status(RUN) is None
    with warnings.catch_warnings(action="ignore"), records.claim([RUN]) as mine:
        assert mine == [RUN]
        save(records)
    assert records.status(RUN) == "done"


def test_a_learning_curve_that_is_no_text_is_said_and_costs_no_other(records):
    other = replace(RUN, seed=1)
    save(records)
    save(records, other)
    curve = records.folder(RUN) / "curve.csv"
    curve.write_bytes(b"\xff" * curve.stat().st_size)
    with pytest.warns(TornRecord, match=r"curve.csv is torn"):
        assert set(records.curves("planted")["key"]) == {other.key}


def test_garbage_in_place_of_a_result_is_torn(records):
    save(records)
    for garbage in (b"", b"[]", b"3", b"{}", b"\x93NUMPY", b'{"files": 3}'):
        (records.folder(RUN) / "result.json").write_bytes(garbage)
        with pytest.warns(UserWarning, match="is torn"):
            assert not records.is_finished(RUN)


def test_a_claim_is_exclusive_and_ends_with_its_block(records):
    other = replace(RUN, seed=1)
    with records.claim([RUN]) as mine:
        assert mine == [RUN]
        with Records(records.root).claim([RUN, other]) as theirs:
            assert theirs == [other]
    with Records(records.root).claim([RUN]) as mine:
        assert mine == [RUN]


def test_a_claim_dies_with_its_process(records):
    script = (
        "import sys, time; from ablations.records import *; from test_records import RUN\n"
        f"with Records({str(records.root)!r}).claim([RUN]): print('mine', flush=True); time.sleep(60)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert owner.stdout.readline() == "mine\n"
    with records.claim([RUN]) as mine:
        assert mine == []
    owner.kill()
    with records.claim([RUN], patience=5) as mine:
        assert mine == [RUN]
    owner.wait()
    owner.stdout.close()


def test_a_finished_run_cannot_be_claimed(records):
    save(records)
    with records.claim([RUN]) as mine:
        assert mine == []


def test_what_a_killed_writer_left_half_written_is_cleared_by_the_next_owner(records):
    records.folder(RUN).mkdir(parents=True)
    (records.folder(RUN) / ".curve.csv.x1y2").write_text("epoch,valid")
    with records.claim([RUN]):
        assert [path.name for path in records.folder(RUN).iterdir()] == ["lock"]


def test_states_tell_done_failed_running_and_waiting_apart(records):
    runs = [replace(RUN, seed=seed) for seed in range(5)]
    records.plan(runs)
    save(records, runs[0])
    save(records, runs[1], "diverged")
    save(records, runs[2], "failed")
    with records.claim([runs[3]]):
        states = records.states().set_index("key").state
    assert [states[run.key] for run in runs] == ["done", "diverged", "failed", "running", "waiting"]


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(records, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordsError, match=r"cannot write .*config.json: No space left on device. What is done is"):
        save(records)


def test_a_record_written_again_is_not_finished_while_its_files_change(records, monkeypatch):
    save(records, status="failed")
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(records)
    assert records.status(RUN) is None


def test_ten_thousand_records_are_scanned_in_five_seconds(records, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    save(records)
    template = {name: (records.folder(RUN) / name).read_bytes() for name in ("environment.json", "result.json")}
    runs = [replace(RUN, seed=seed) for seed in range(10_000)]
    for run in runs[1:]:
        folder = records.folder(run)
        folder.mkdir()
        config = json.dumps(run.fields()).encode()
        (folder / "config.json").write_bytes(config)
        (folder / "environment.json").write_bytes(template["environment.json"])
        files = {"config.json": len(config), "environment.json": len(template["environment.json"])}
        result = json.loads(template["result.json"]) | {"files": files}
        (folder / "result.json").write_text(json.dumps(result))
    start = time.process_time()
    assert all(map(records.is_finished, runs))
    scanned = time.process_time()
    assert len(records.table()) == 10_000
    assert scanned - start < 5
    assert time.process_time() - scanned < 10


def test_declarations_written_at_once_lose_no_level(records):
    """Threads hold locks of their own, as processes do."""
    extended = [STUDY.extended(one_factor_at_a_time(STUDY, {"width": (str(width),)})) for width in range(10, 30)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda study: records.declare(study.declaration()), extended))
    names = {level["name"] for level in records.declaration("planted")["factors"][0]["levels"]}
    assert {str(width) for width in range(10, 30)} <= names


def test_levels_that_an_earlier_command_added_stay_declared(records):
    records.declare(STUDY.extended(one_factor_at_a_time(STUDY, {"width": ("6",)})).declaration())
    records.declare(STUDY.extended(one_factor_at_a_time(STUDY, {"width": ("5",)})).declaration())
    levels = records.declaration("planted")["factors"][0]["levels"]
    assert [level["name"] for level in levels] == ["four", "eight", "5", "6"]


def test_a_study_without_runs_says_how_to_make_some(records):
    with pytest.raises(FileNotFoundError, match="ablate run missing"):
        records.declaration("missing")


def test_the_declaration_read_back_is_the_one_written(records):
    assert records.studies() == ["planted"]
    assert records.declaration("planted")["question"] == STUDY.question
