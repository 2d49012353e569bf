"""Runs jobs in processes of this machine, one thread each; a process that dies costs its own job only."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from ablations.engines import Epoch, Event, Ledger, Part
from ablations.plan import Job
from ablations.records import Records, RecordsError


@dataclass
class _Worker:
    process: ForkServerProcess
    connection: Connection  # its own: a queue shared by all would not survive the death of one
    part: Part | None = None


class Local:
    """Up to `workers` jobs at once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, jobs: Sequence[Job], records: Records) -> Generator[Event, None, None]:
        ledger = Ledger(jobs, records)
        workers: list[_Worker] = []
        try:
            while ledger.waiting or any(worker.part for worker in workers):
                idle = [worker for worker in workers if not worker.part]
                for _ in range(min(self.workers - len(workers), len(ledger.waiting) - len(idle))):
                    idle.append(_start(records.root))
                    workers.append(idle[-1])
                for worker in idle[: len(ledger.waiting)]:
                    worker.part = ledger.waiting.popleft()
                    with suppress(BrokenPipeError):  # a worker that died: its stream ends, and is handled below
                        worker.connection.send((worker.part, jobs[worker.part.job].task))
                ready = wait([worker.connection for worker in workers])
                for worker in [worker for worker in workers if worker.connection in ready]:
                    yield from _receive(worker, workers, ledger)
        finally:
            _stop([worker.process for worker in workers])


def _receive(worker: _Worker, workers: list[_Worker], ledger: Ledger) -> Sequence[Event]:
    """What the worker's next message, or its death, amounts to."""
    part = worker.part
    try:
        message = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        workers.remove(worker)
        return ledger.die(part, _how_it_ended(worker.process)) if part else []
    if isinstance(message, RecordsError):
        raise message
    if isinstance(message, Epoch):
        return [message]
    worker.part = None
    return ledger.end(part, message) if part else []


def _start(root: Path) -> _Worker:
    context = multiprocessing.get_context("forkserver")  # which loads torch once, for all workers
    context.set_forkserver_preload(["torch", "torch._dynamo", "pandas"])  # the latter two are needed late
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
    """A worker's life: train the parts that come, until it is stopped or the stream ends with its parent."""
    from ablations.training import Row, train

    records = Records(root)
    with suppress(EOFError, BrokenPipeError):
        while True:
            part, task = connection.recv()

            def report(epoch: int, epochs: int, rows: Mapping[str, Row], place: int = part.job) -> None:
                connection.send(Epoch(place, epoch, epochs, rows))

            try:
                connection.send(train(part.configurations, task, records, report, part.patience))
            except RecordsError as error:
                connection.send(error)


def _how_it_ended(process: ForkServerProcess) -> str:
    process.join()
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL, which is how Linux ends processes when memory runs out"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _stop(processes: Sequence[ForkServerProcess]) -> None:
    """End processes at any moment: records appear whole or not at all."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=2)
        process.kill()
        process.join()
