"""Streams learning curves to TensorBoard, MLflow or Weights & Biases while runs train."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ablations.engines import Epoch, Event
from ablations.extras import ExtraError, require
from ablations.records import Configuration

if TYPE_CHECKING:
    from ablations.plan import Job
    from ablations.training import Row


class Tracker(Protocol):
    """A place that curves are sent to."""

    def log(self, run: Configuration, row: Row) -> None:
        """One epoch of one run; `row` has its `step`."""

    def close(self) -> None:
        """Send what is left."""


class Curves:
    """Sends every epoch of every run to all trackers; one that fails is left out from then on, with a warning."""

    def __init__(self, jobs: Sequence[Job], trackers: Sequence[Tracker]) -> None:
        self._runs = {run.key: run for job in jobs for run in job.configurations}
        self._trackers = list(trackers)

    def show(self, event: Event) -> None:
        for key, row in event.rows.items() if isinstance(event, Epoch) else ():
            for tracker in list(self._trackers):
                try:
                    tracker.log(self._runs[key], row)
                except Exception as error:  # noqa: BLE001 -- whatever a server answers, runs go on
                    warnings.warn(f"{type(tracker).__name__} gets no more curves: {error}", stacklevel=2)
                    self._trackers.remove(tracker)


class TensorBoard:
    """Event files under the folder `tensorboard`, one run each; `tensorboard --logdir tensorboard` shows them."""

    def __init__(self) -> None:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[..., Any] = SummaryWriter
        self._writers: dict[str, Any] = {}

    def log(self, run: Configuration, row: Row) -> None:
        if run.key not in self._writers:
            self._writers[run.key] = self._open(f"tensorboard/{run.study}/{_name(run)}")
        for name, value in _measures(row).items():
            self._writers[run.key].add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class MLflow:
    """Runs of the experiment named as the study, on the server that `MLFLOW_TRACKING_URI` names."""

    def __init__(self) -> None:
        require("mlflow", "mlflow")
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._ids: dict[str, str] = {}

    def log(self, run: Configuration, row: Row) -> None:
        if run.key not in self._ids:
            experiment = self._client.get_experiment_by_name(run.study)
            place = experiment.experiment_id if experiment else self._client.create_experiment(run.study)
            self._ids[run.key] = self._client.create_run(place, run_name=_name(run), tags=_tags(run)).info.run_id
        for name, value in _measures(row).items():
            self._client.log_metric(self._ids[run.key], name, value, step=int(row["step"]))

    def close(self) -> None:
        for run_id in self._ids.values():
            self._client.set_terminated(run_id)


class WeightsAndBiases:
    """Runs of the project named as the study, where the `WANDB_...` variables say."""

    def __init__(self) -> None:
        require("wandb", "wandb")
        import wandb

        self._wandb = wandb
        self._runs: dict[str, Any] = {}

    def log(self, run: Configuration, row: Row) -> None:
        if run.key not in self._runs:
            self._runs[run.key] = self._wandb.init(
                project=run.study,
                name=_name(run),
                id=run.key,
                config=run.fields(),
                reinit="create_new",
                settings=self._wandb.Settings(silent=True),
            )
        self._runs[run.key].log(_measures(row), step=int(row["step"]))

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


def track(name: str) -> Tracker:
    """The tracker called so in `TRACKERS`. Raises `ExtraError` if its library is missing or refuses."""
    try:
        return TRACKERS[name]()
    except ExtraError:
        raise
    except Exception as error:
        raise ExtraError(f"{name} cannot be used: {error}") from error


TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _name(run: Configuration) -> str:
    levels = " ".join(f"{factor}={level}" for factor, level in run.levels.items())
    return f"{levels} seed={run.seed} {run.key[:6]}"


def _tags(run: Configuration) -> dict[str, str]:
    return {"key": run.key, "preset": run.preset, "seed": str(run.seed), **run.levels}


def _measures(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("epoch", "step")}
