"""Shows how jobs get on: bars with the time left on a terminal, a line per job elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ablations.engines import Ended, Epoch, Event
from ablations.plan import Job, duration


class Display:
    """A context in which events of an engine are shown as they come, and `counts` says how runs ended."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.jobs = jobs
        self.counts: Counter[str] = Counter()
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._weights = [job.seconds or 1.0 for job in jobs]
        self._all = self._bars.add_task("all runs", total=sum(self._weights), detail="")
        self._running: dict[int, TaskID] = {}
        self._passed = [0.0] * len(jobs)  # the part of each job that is done
        self._started: dict[int, float] = {}
        self._ended = 0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        if isinstance(event, Epoch):
            self._show_epoch(event)
        else:
            self._show_end(event)
        done = sum(weight * passed for weight, passed in zip(self._weights, self._passed, strict=True))
        runs = sum(len(job.configurations) for job in self.jobs)
        self._bars.update(self._all, completed=done, detail=f"{self.counts.total()} of {runs} runs")

    def _show_epoch(self, event: Epoch) -> None:
        if event.job not in self._running:
            self._running[event.job] = self._bars.add_task(f"  {_title(self.jobs[event.job])}", detail="")
            self._started[event.job] = time.monotonic()
        detail = f"epoch {event.epoch} of {event.epochs}"
        if event.epoch:
            detail += f", validation loss {event.validation_loss:.4g}"
        self._bars.update(self._running[event.job], completed=event.epoch, total=event.epochs, detail=detail)
        self._passed[event.job] = event.epoch / event.epochs

    def _show_end(self, event: Ended) -> None:
        self.counts.update(event.outcomes)
        self._passed[event.job] = 1.0
        self._ended += 1
        if event.job in self._running:
            self._bars.remove_task(self._running.pop(event.job))
        now = time.monotonic()
        took = duration(now - self._started.get(event.job, now))
        line = f"[{self._ended}/{len(self.jobs)}] {_title(self.jobs[event.job])}: {outcome(event.outcomes)} in {took}"
        self._console.print(line, highlight=False, markup=False)


def outcome(outcomes: Sequence[str] | Counter[str]) -> str:
    """Outcomes counted in words: `4 done, 1 diverged`; `elsewhere` are those that another process does or has done."""
    counts = Counter(outcomes)
    order = ("done", "diverged", "failed", "elsewhere")
    return ", ".join(f"{counts[status]} {status}" for status in order if counts[status])


def _title(job: Job) -> str:
    return f"{job.study} {job.label} x{len(job.configurations)}"
