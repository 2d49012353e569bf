"""Processes of this machine that work for this one: how one dies is an answer, and takes nothing else with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any


@dataclass
class Worker:
    process: ForkServerProcess
    connection: Connection  # its own: a queue shared by all would not survive the death of one


class Died(RuntimeError):
    """A process has ended before its answer; the message goes on from "it"."""


def start(target: Callable[..., None], *arguments: Any) -> Worker:
    """A process that runs `target(connection, *arguments)` and has torch loaded."""
    context = multiprocessing.get_context("forkserver")  # which loads torch once, for all workers
    context.set_forkserver_preload(["torch", "torch._dynamo", "pandas"])  # the latter two are needed late
    # Ctrl-C reaches every process of the terminal. The server and its workers inherit that it is held back; this
    # process, which stops them, hears it again at once, before it waits for the server to have loaded.
    resource_tracker.ensure_running()  # which the server would start, and end the holding back
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _one_thread_in_children():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
    connection, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # so that the worker's death ends the stream
    return Worker(process, connection)


@contextmanager
def _one_thread_in_children() -> Iterator[None]:
    """Workers share a machine by cores, so that none of their libraries may take more than one."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def stop(processes: Sequence[ForkServerProcess]) -> None:
    """End processes at any moment: records appear whole or not at all."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=2)
        process.kill()
        process.join()


def how_it_ended(process: ForkServerProcess) -> str:
    process.join()
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL, which is how Linux ends processes when memory runs out"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Apart:
    """A context in which functions are called in a process of their own, the same one as long as it lives."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker:
            stop([self._worker.process])

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns or raises. Raises `Died` if its process has ended instead."""
        self._worker = self._worker or start(_answer)
        try:
            self._worker.connection.send((function, arguments))
            succeeded, answer = self._worker.connection.recv()
        except (EOFError, ConnectionError):
            process, self._worker = self._worker.process, None
            raise Died(how_it_ended(process)) from None
        if succeeded:
            return answer
        raise answer


def _answer(connection: Connection) -> None:
    with suppress(EOFError, BrokenPipeError):
        while True:
            function, arguments = connection.recv()
            try:
                answer = True, function(*arguments)
            except Exception as error:  # noqa: BLE001 -- raised again where it was asked for
                answer = False, error
            connection.send(answer)
