"""Claims on streamed curves: every epoch of every run arrives, and no tracker can stop a run."""

import pytest
from planted import DEFAULTS, STUDY, PlantedTask

from ablations.callbacks import TRACKERS, Curves, track
from ablations.engines import Ended, Epoch
from ablations.extras import ExtraError
from ablations.plan import Job
from ablations.records import Configuration

RUNS = tuple(Configuration("planted", "1", "1", "quick", DEFAULTS, {"width": "four"}, seed) for seed in range(2))
JOBS = [Job(STUDY.name, "baseline", PlantedTask, RUNS)]


def rows(epoch):
    return {
        run.key: {"epoch": epoch, "step": 4 * epoch, "validation_loss": run.seed + 1 / epoch, "seconds": 0.1}
        for run in RUNS
    }


EVENTS = [Epoch(0, 0, 2, {}), Epoch(0, 1, 2, rows(1)), Epoch(0, 2, 2, rows(2)), Ended(0, ("done", "done"))]


def show(tracker):
    curves = Curves(JOBS, [tracker])
    for event in EVENTS:
        curves.show(event)


class _Listed:
    def __init__(self, fail_at=None):
        self.logged, self.fail_at = [], fail_at

    def log(self, run, row):
        self.logged.append((run.seed, row["step"]))
        if len(self.logged) == self.fail_at:
            raise ConnectionError("the server is gone")

    def close(self):
        pass


def test_every_epoch_of_every_run_is_sent():
    tracker = _Listed()
    show(tracker)
    assert tracker.logged == [(0, 4), (1, 4), (0, 8), (1, 8)]


def test_a_tracker_that_fails_is_left_out_with_a_warning():
    tracker = _Listed(fail_at=2)
    with pytest.warns(UserWarning, match="_Listed gets no more curves: the server is gone"):
        show(tracker)
    assert len(tracker.logged) == 2


def test_a_tracker_that_cannot_start_is_named(monkeypatch):
    monkeypatch.setitem(TRACKERS, "listed", lambda: _Listed(fail_at="x").log(None, {}))
    with pytest.raises(ExtraError, match="listed cannot be used"):
        track("listed")


def test_tensorboard_reads_back_the_curves(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the extra recurve[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    tracker = track("tensorboard")
    show(tracker)
    tracker.close()
    folders = sorted(tmp_path.glob("tensorboard/planted/*"))
    assert len(folders) == 2
    events = EventAccumulator(str(folders[1])).Reload()
    assert [(event.step, event.value) for event in events.Scalars("validation_loss")] == [(4, 2.0), (8, 1.5)]


def test_mlflow_reads_back_the_curves(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra recurve[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = track("mlflow")
    show(tracker)
    tracker.close()
    client = mlflow.MlflowClient()
    (experiment,) = (e for e in client.search_experiments() if e.name == "planted")
    runs = {run.data.tags["seed"]: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    history = client.get_metric_history(runs["1"].info.run_id, "validation_loss")
    assert [(metric.step, metric.value) for metric in history] == [(4, 2.0), (8, 1.5)]


def test_weights_and_biases_takes_the_curves(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra recurve[wandb]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = track("wandb")
    show(tracker)
    assert [tracker._runs[run.key].step for run in RUNS] == [8, 8]
    tracker.close()
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2
