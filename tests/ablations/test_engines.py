"""Claims on engines: a job that fails or dies touches no other, and repeating the command completes the table."""

import multiprocessing
import os
import warnings
from dataclasses import replace

import pandas as pd
import planted
import psutil
import pytest
import torch

from ablations.devices import Memory
from ablations.engines import Ended, Epoch, Ledger, Part, Sharing
from ablations.engines.local import Local, _work
from ablations.plan import longest_first, plan_study
from ablations.processes import Apart
from ablations.records import Records


def planned(study, records, words, seeds, workers=4):
    return longest_first([plan_study(study, "quick", words, seeds, records, workers)])


def plan_jobs(records, words, seeds=2, workers=2):
    return planned(planted.STUDY, records, words, seeds, workers)


def run_all(records, words=("width=eight", "jitter=on"), workers=2, seeds=2):
    return list(Local(workers).run(plan_jobs(records, words, seeds), records))


def results(records):
    return records.table().drop(columns="message")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Records and events of a run that nothing happened to."""
    records = Records(tmp_path_factory.mktemp("uninterrupted"))
    records.declare(planted.STUDY.declaration())
    return records, run_all(records)


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path)
    records.declare(planted.STUDY.declaration())
    return records


def workers():
    """Processes that train: children of the server that forks them."""
    return [worker for server in psutil.Process().children() for worker in server.children()]


def test_a_job_that_fails_is_on_record_and_the_others_are_done(records):
    run_all(records, ["trouble=raises", "width=eight"])
    statuses = records.table().groupby(["trouble", "width"]).status.unique().map(list).to_dict()
    assert statuses == {
        ("none", "four"): ["done"],
        ("none", "eight"): ["done"],
        ("raises", "four"): ["done", "failed"],
    }


def test_a_run_that_kills_its_process_is_recorded_alone_with_how_it_ended(records):
    events = run_all(records, ["trouble=kills"], seeds=4)
    table = records.table()
    assert table.groupby("trouble").status.value_counts().to_dict() == {
        ("none", "done"): 4,
        ("kills", "done"): 3,
        ("kills", "failed"): 1,
    }
    (message,) = table.message[table.status == "failed"]
    assert "alone was ended by SIGKILL, which is how Linux ends processes when memory runs out" in message
    assert sorted(event.outcomes.count("failed") for event in events if isinstance(event, Ended)) == [0, 1]


def test_what_a_killed_worker_was_doing_is_done_all_the_same(records, uninterrupted):
    killed = False
    for event in Local(2).run(plan_jobs(records, ["width=eight", "jitter=on"]), records):
        if isinstance(event, Epoch) and not killed:
            workers()[0].kill()
            killed = True
    pd.testing.assert_frame_equal(results(records), results(uninterrupted[0]), rtol=1e-11)
    assert run_all(records, workers=1) == []


def test_a_worker_that_loses_its_parent_leaves_its_runs_to_others(records):
    job = plan_jobs(records, ["width=eight"])[0]
    ours, theirs = multiprocessing.Pipe()
    ours.send((Part(0, job.configurations), job.task))
    ours.close()
    with pytest.raises(SystemExit), warnings.catch_warnings():
        _work(theirs, records.root)
    assert records.table().empty
    with records.claim(job.configurations) as mine:
        assert mine == list(job.configurations)


def test_a_second_run_repeats_nothing(uninterrupted):
    records, _ = uninterrupted
    written = {path: path.stat().st_mtime_ns for path in records.root.rglob("*.json")}
    assert run_all(records) == []
    assert {path: path.stat().st_mtime_ns for path in records.root.rglob("*.json")} == written


def test_the_number_of_workers_does_not_change_the_table(records, uninterrupted):
    run_all(records, workers=1)
    pd.testing.assert_frame_equal(results(records), results(uninterrupted[0]), rtol=1e-11)


def test_closing_an_engine_ends_its_processes_and_keeps_what_is_done(records):
    events = Local(1).run(plan_jobs(records, ["trouble=slow"], workers=1), records)
    for event in events:
        if isinstance(event, Epoch) and event.epochs == 100 and event.epoch == 1:
            break
    events.close()
    assert workers() == []
    assert records.table().trouble.tolist() == ["none", "none"]


@pytest.mark.parametrize(("used", "fraction", "at_once"), [(20, 0.25, 4), (39, 0.4875, 2), (79, 0.9875, 1), (99, 1, 1)])
def test_a_gpu_is_shared_by_the_memory_that_the_first_job_takes_of_it(used, fraction, at_once):
    sharing = Sharing(Ledger([], Records("unused")), [])
    sharing.see(Epoch(0, 0, 3, {}, Memory(100, 5)))  # at its start it has not trained yet
    assert (sharing.fraction, sharing.at_once) == (1, 1)
    for later in (used, 1):
        sharing.see(Epoch(0, 1, 3, {}, Memory(100, later)))
        assert (sharing.fraction, sharing.at_once) == (fraction, at_once)


def test_the_job_that_needs_most_is_the_first_on_a_gpu_and_alone_until_its_memory_is_measured(records):
    """No GPU takes part: what workers are told of its memory is planted."""
    settings = planted.DEFAULTS | {"gpu_memory": (100, 39), "pause": 0.5}
    study = replace(planted.STUDY, presets={"quick": replace(planted.STUDY.presets["quick"], settings=settings)})
    jobs = planned(study, records, ["width=eight", "trouble=fails_evaluation,spoiled"], 1)
    jobs = [replace(job, bytes=100 if "spoiled" in job.label else 1) for job in jobs]
    events = list(Local(3, on_gpu=True).run(jobs, records))
    assert "spoiled" in jobs[events[0].job].label
    assert planted.at_once(events) == (2, 1)
    assert len(records.table()) == len(jobs) == 4


def test_jobs_on_a_gpu_go_on_one_by_one_when_the_first_never_ends_an_epoch(records):
    jobs = planned(planted.STUDY, records, ["trouble=raises"], 2)
    jobs = [replace(job, bytes=len(job.label) * job.configurations[0].seed) for job in jobs]
    events = list(Local(3, on_gpu=True).run(jobs, records))
    assert events[0] == Ended(events[0].job, ("failed",))
    assert planted.at_once(events[1:])[1] == 1
    assert len(records.table()) == 4


def test_a_worker_has_one_thread_whatever_this_process_has(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with Apart() as process:
        assert process.call(os.getenv, "OMP_NUM_THREADS") == "1"
        assert process.call(torch.get_num_threads) == 1
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_every_epoch_of_every_job_is_reported(uninterrupted):
    _, events = uninterrupted
    epochs = [(event.job, event.epoch) for event in events if isinstance(event, Epoch)]
    assert sorted(epochs) == [(job, epoch) for job in range(2) for epoch in range(4)]
    assert sorted(event.outcomes for event in events if isinstance(event, Ended)) == [("done",) * 2, ("done",) * 4]
    rows = [row for event in events if isinstance(event, Epoch) for row in event.rows.values()]
    assert sorted(row["epoch"] for row in rows) == [1] * 6 + [2] * 6 + [3] * 6
