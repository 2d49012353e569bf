"""Runs jobs in processes of this machine, one thread each; a process that dies costs its own job only."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ablations import devices, processes
from ablations.engines import Epoch, Event, Ledger, Part, Sharing
from ablations.plan import Job
from ablations.records import Records, RecordsError, TornRecord


@dataclass
class _Worker(processes.Worker):
    part: Part | None = None


class Local:
    """Up to `workers` jobs at once; on a GPU, no more than its memory serves."""

    def __init__(self, workers: int, on_gpu: bool = False) -> None:
        self.workers, self.on_gpu = workers, on_gpu

    def run(self, jobs: Sequence[Job], records: Records) -> Generator[Event, None, None]:
        ledger = Ledger(jobs, records)
        sharing = Sharing(ledger, jobs) if self.on_gpu else None
        workers: list[_Worker] = []
        try:
            while ledger.waiting or any(worker.part for worker in workers):
                at_once = min(self.workers, sharing.at_once) if sharing else self.workers
                idle = [worker for worker in workers if not worker.part]
                for _ in range(min(at_once - len(workers), len(ledger.waiting) - len(idle))):
                    idle.append(_Worker(**vars(processes.start(_work, records.root))))
                    workers.append(idle[-1])
                for worker in idle[: len(ledger.waiting)]:
                    worker.part = ledger.waiting.popleft()
                    with suppress(BrokenPipeError):  # a worker that died: its stream ends, and is handled below
                        worker.connection.send((worker.part, jobs[worker.part.job].task))
                ready = wait([worker.connection for worker in workers])
                for worker in [worker for worker in workers if worker.connection in ready]:
                    for event in _receive(worker, workers, ledger):
                        if sharing:
                            sharing.see(event)
                        yield event
        finally:
            processes.stop([worker.process for worker in workers])


def _receive(worker: _Worker, workers: list[_Worker], ledger: Ledger) -> Sequence[Event]:
    """What the worker's next message, or its death, amounts to."""
    part = worker.part
    try:
        message = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        workers.remove(worker)
        return ledger.die(part, processes.how_it_ended(worker.process)) if part else []
    if isinstance(message, RecordsError):
        raise message
    if isinstance(message, Epoch):
        return [message]
    worker.part = None
    return ledger.end(part, message) if part else []


def _work(connection: Connection, root: Path) -> None:
    """A worker's life: train the parts that come, until it is stopped or the stream ends with its parent."""
    from ablations.training import Row, train

    records = Records(root)
    warnings.simplefilter("ignore", TornRecord)  # the parent has said so
    with suppress(EOFError, ConnectionError):
        while True:
            part, task = connection.recv()

            def report(epoch: int, epochs: int, rows: Mapping[str, Row], place: int = part.job) -> None:
                try:
                    connection.send(Epoch(place, epoch, epochs, rows, devices.gpu_memory()))
                except ConnectionError:  # the parent is gone; that says nothing of the runs, which wait for another
                    raise SystemExit(1) from None

            try:
                connection.send(train(part.configurations, task, records, report, part.patience))
            except RecordsError as error:
                connection.send(error)
