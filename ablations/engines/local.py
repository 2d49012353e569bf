"""Runs jobs in processes of this machine, one thread each; a process that dies costs its own job only."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ablations.engines import Ended, Epoch
from ablations.plan import Job
from ablations.records import Records, Result, Status


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection  # its own: a queue shared by all would not survive the death of one
    job: int | None = None


class Local:
    """Up to `workers` jobs at once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, jobs: Sequence[Job], records: Records) -> Generator[Epoch | Ended, None, None]:
        waiting = deque(range(len(jobs)))
        workers: list[_Worker] = []
        try:
            while waiting or any(worker.job is not None for worker in workers):
                idle = [worker for worker in workers if worker.job is None]
                for _ in range(min(self.workers - len(workers), len(waiting) - len(idle))):
                    idle.append(_start(records.root))
                    workers.append(idle[-1])
                for worker in idle[: len(waiting)]:
                    worker.job = waiting.popleft()
                    with suppress(BrokenPipeError):  # a worker that died: its stream ends, and is handled below
                        worker.connection.send((worker.job, jobs[worker.job]))
                ready = wait([worker.connection for worker in workers])
                for worker in [worker for worker in workers if worker.connection in ready]:
                    try:
                        event = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        workers.remove(worker)
                        if worker.job is not None:
                            yield Ended(worker.job, _record_death(worker.process, jobs[worker.job], records))
                        continue
                    if isinstance(event, Ended):
                        worker.job = None
                    yield event
        finally:
            _stop([worker.process for worker in workers])


def _start(root: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, root), daemon=True)
    # Ctrl-C reaches every process of the terminal. Workers inherit that it is ignored; this process stops them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    theirs.close()  # so that the worker's death ends the stream
    return _Worker(process, connection)


def _work(connection: Connection, root: Path) -> None:
    """A worker's life: train the jobs that come, until it is stopped or the stream ends with its parent."""
    from ablations.training import train

    records = Records(root)
    with suppress(EOFError, BrokenPipeError):
        while True:
            place, job = connection.recv()

            def report(epoch: int, epochs: int, validation_loss: float, place: int = place) -> None:
                connection.send(Epoch(place, epoch, epochs, validation_loss))

            statuses = train(job.configurations, job.task, records, report)
            connection.send(Ended(place, tuple(statuses)))


def _record_death(process: SpawnProcess, job: Job, records: Records) -> tuple[Status, ...]:
    """Put the runs that a dead worker left unfinished on record as failed."""
    from ablations.training import environment

    process.join()
    code = process.exitcode or 0
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    result = Result("failed", {}, f"the process that trained this run ended {how}")
    statuses: list[Status] = []
    for configuration in job.configurations:
        if records.is_finished(configuration):
            statuses.append("done")
            continue
        records.save(configuration, result, environment=environment())
        statuses.append("failed")
    return tuple(statuses)


def _stop(processes: Sequence[SpawnProcess]) -> None:
    """End processes at any moment: records appear whole or not at all."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=2)
        process.kill()
        process.join()
