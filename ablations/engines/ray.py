"""Runs jobs on a Ray cluster (extra `recurve[ray]`), one CPU each and, where asked, a share of a GPU; what a lost node
was doing is done elsewhere.

All nodes need this package and the study's code, and must share the runs folder.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations import devices
from ablations.design import DesignError, Task
from ablations.engines import PATIENCE, Ended, Epoch, Event, Ledger, Part, Sharing
from ablations.extras import require
from ablations.plan import Job
from ablations.records import Records, RecordsError

if TYPE_CHECKING:
    from ablations.training import Outcome, Row

POLL_SECONDS = 0.2


class Ray:
    """The cluster at `address` ("auto" finds the one on this machine), by default a new one on this machine.

    On GPUs, the first job has one to itself, and the others as much of one as the memory that it took.
    """

    def __init__(self, address: str | None = None, on_gpu: bool = False) -> None:
        require("ray", "ray")
        self.address, self.on_gpu = address, on_gpu

    def run(self, jobs: Sequence[Job], records: Records) -> Generator[Event, None, None]:
        import ray
        from ray.exceptions import NodeDiedError, RayError, RayTaskError
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        connect = not ray.is_initialized()
        if connect:
            ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING)
        if self.on_gpu and not ray.cluster_resources().get("GPU"):
            raise DesignError("ABLATE_DEVICE=cuda: no node of the cluster has a GPU; leave it out for the CPU")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        epochs = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        device = {"env_vars": {"ABLATE_DEVICE": "cuda"}} if self.on_gpu else None
        train_there = ray.remote(num_cpus=1, max_retries=0, runtime_env=device)(_train)
        root = records.root.resolve()
        ledger = Ledger(jobs, records)
        sharing = Sharing(ledger, jobs) if self.on_gpu else None
        running: dict[Any, Part] = {}
        try:
            while ledger.waiting or running:
                while ledger.waiting and not (sharing and sharing.measures and running):
                    part = ledger.waiting.popleft()
                    there = train_there.options(num_gpus=sharing.fraction) if sharing else train_there
                    running[there.remote(part, jobs[part.job].task, root, epochs)] = part
                ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                for event in epochs.get_nowait_batch(epochs.qsize()):
                    if sharing:
                        sharing.see(event)
                    yield event
                for reference in ready:
                    part = running.pop(reference)
                    try:
                        ended = ledger.end(part, ray.get(reference))
                    except RayTaskError as error:
                        raise error.cause if isinstance(error.cause, RecordsError) else error from None
                    except NodeDiedError:
                        ledger.waiting.append(replace(part, patience=PATIENCE))
                    except RayError as error:
                        yield from ledger.die(part, f"was lost: {error}")
                    else:
                        _check_shared(ended, jobs, records)
                        yield from ended
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            epochs.shutdown(force=True)
            if connect:
                ray.shutdown()


def _train(part: Part, task: type[Task], root: Path, epochs: Any) -> list[Outcome]:
    from ray.exceptions import RayError

    from ablations.training import train

    def report(epoch: int, of_epochs: int, rows: Mapping[str, Row]) -> None:
        try:
            epochs.put_nowait(Epoch(part.job, epoch, of_epochs, rows, devices.gpu_memory()))
        except RayError:  # nobody listens any more; that says nothing of the runs, which wait for another
            raise SystemExit(1) from None

    return train(part.configurations, task, Records(root), report, part.patience)


def _check_shared(ended: Sequence[Ended], jobs: Sequence[Job], records: Records) -> None:
    """Raise `RecordsError` if a worker has written records that cannot be seen from here."""
    for event in ended:
        for run, outcome in zip(jobs[event.job].configurations, event.outcomes, strict=True):
            if outcome != "elsewhere" and records.status(run) is None:
                raise RecordsError(
                    f"a node of the cluster has trained run {run.key}, but {records.folder(run)} is not there: name a "
                    "folder that all nodes share with --runs, then repeat the command"
                )
