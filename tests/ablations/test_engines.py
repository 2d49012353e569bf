"""Claims on engines: a job that fails or dies touches no other, and repeating the command completes the table."""

import pandas as pd
import planted
import psutil
import pytest

from ablations.engines import Ended, Epoch
from ablations.engines.local import Local
from ablations.plan import longest_first, plan_study
from ablations.records import Records


def plan_jobs(records, words, seeds=2, workers=2):
    return longest_first([plan_study(planted.STUDY, "quick", words, seeds, records, workers)])


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


def test_every_epoch_of_every_job_is_reported(uninterrupted):
    _, events = uninterrupted
    epochs = [(event.job, event.epoch) for event in events if isinstance(event, Epoch)]
    assert sorted(epochs) == [(job, epoch) for job in range(2) for epoch in range(4)]
    assert sorted(event.outcomes for event in events if isinstance(event, Ended)) == [("done",) * 2, ("done",) * 4]
    rows = [row for event in events if isinstance(event, Epoch) for row in event.rows.values()]
    assert sorted(row["epoch"] for row in rows) == [1] * 6 + [2] * 6 + [3] * 6
