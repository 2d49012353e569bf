"""Claims on engines: a job that fails or dies touches no other, and repeating the command completes the table."""

import os
import signal

import pandas as pd
import planted
import pytest

from ablations.engines import Ended, Epoch
from ablations.engines.local import Local
from ablations.plan import longest_first, plan_study
from ablations.records import Records


def plan_jobs(records, words, seeds=2, workers=2):
    return longest_first([plan_study(planted.STUDY, "quick", words, seeds, records, workers)])


def run_all(records, words=("width=eight", "jitter=on"), workers=2):
    return list(Local(workers).run(plan_jobs(records, words), records))


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


def children(pid):
    """Process ids of a process's worker processes."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as command:
                is_child = int(stat.read().rpartition(")")[2].split()[1]) == pid
                if is_child and "spawn_main" in command.read():
                    found.append(int(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_a_job_that_fails_is_on_record_and_the_others_are_done(records):
    run_all(records, ["trouble=raises", "width=eight"])
    statuses = records.table().groupby(["trouble", "width"]).status.unique().map(list).to_dict()
    assert statuses == {("none", "four"): ["done"], ("none", "eight"): ["done"], ("raises", "four"): ["failed"]}


def test_a_killed_worker_costs_its_job_only_and_a_rerun_completes_the_table(records, uninterrupted):
    killed = False
    for event in Local(2).run(plan_jobs(records, ["width=eight", "jitter=on"]), records):
        if isinstance(event, Epoch) and not killed:
            os.kill(children(os.getpid())[0], signal.SIGKILL)
            killed = True
    table = records.table()
    assert table.status.value_counts().to_dict() == {"done": 4, "failed": 2}
    assert table.message[table.status == "failed"].str.contains("SIGKILL").all()
    assert sum(len(event.statuses) for event in run_all(records, workers=1) if isinstance(event, Ended)) == 2
    pd.testing.assert_frame_equal(results(records), results(uninterrupted[0]))


def test_a_second_run_repeats_nothing(uninterrupted):
    records, _ = uninterrupted
    written = {path: path.stat().st_mtime_ns for path in records.root.rglob("*.json")}
    assert run_all(records) == []
    assert {path: path.stat().st_mtime_ns for path in records.root.rglob("*.json")} == written


def test_the_number_of_workers_does_not_change_the_table(records, uninterrupted):
    run_all(records, workers=1)
    pd.testing.assert_frame_equal(results(records), results(uninterrupted[0]), check_exact=True)


def test_closing_an_engine_ends_its_processes_and_keeps_what_is_done(records):
    events = Local(1).run(plan_jobs(records, ["trouble=slow"], workers=1), records)
    for event in events:
        if isinstance(event, Epoch) and event.epochs == 100 and event.epoch == 1:
            break
    events.close()
    assert children(os.getpid()) == []
    assert records.table().trouble.tolist() == ["none", "none"]


def test_every_epoch_of_every_job_is_reported(uninterrupted):
    _, events = uninterrupted
    epochs = [(event.job, event.epoch) for event in events if isinstance(event, Epoch)]
    assert sorted(epochs) == [(job, epoch) for job in range(3) for epoch in range(4)]
    assert [event.statuses for event in events if isinstance(event, Ended)] == [("done", "done")] * 3
