"""Where jobs run: an engine takes jobs and yields what happens; every engine leaves the same records."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ablations.devices import MEMORY_SHARE, Memory
from ablations.plan import Job
from ablations.records import FINISHED, PROBE_SECONDS, Configuration, Records, Result

if TYPE_CHECKING:
    from ablations.training import Outcome, Row


GPU_PARTS = 10_000  # into which Ray divides a GPU
PATIENCE = 60.0  # seconds for a process that is ending to let go of its runs


@dataclass(frozen=True)
class Epoch:
    """Runs of a job have finished an epoch; epoch 0 says that they have started."""

    job: int  # its place among the jobs given to the engine
    epoch: int
    epochs: int
    rows: Mapping[str, Row]  # of the learning curves, by key; runs that diverged have none
    memory: Memory | None = None  # of the GPU that trains them, at the epoch's end

    @property
    def validation_loss(self) -> float:
        """Median of the runs."""
        return statistics.median(row["validation_loss"] for row in self.rows.values()) if self.rows else math.nan


@dataclass(frozen=True)
class Ended:
    """A job has ended and its runs are on record."""

    job: int
    outcomes: tuple[Outcome, ...]


Event = Epoch | Ended


class Engine(Protocol):
    def run(self, jobs: Sequence[Job], records: Records) -> Generator[Event, None, None]:
        """Run the jobs; closing the generator stops those under way and keeps what is done.

        Raises `RecordsError` if the records cannot be written.
        """


@dataclass(frozen=True)
class Part:
    """Runs of one job that are sent to a worker together."""

    job: int
    configurations: tuple[Configuration, ...]
    patience: float = PROBE_SECONDS  # for another owner of the runs to end


class Ledger:
    """What waits to be done, and how the runs of each job ended."""

    def __init__(self, jobs: Sequence[Job], records: Records) -> None:
        self.waiting = deque(Part(place, job.configurations) for place, job in enumerate(jobs))
        self._jobs, self._records = jobs, records
        self._outcomes: list[dict[str, Outcome]] = [{} for _ in jobs]

    def end(self, part: Part, outcomes: Sequence[Outcome]) -> list[Ended]:
        """Note how the part's runs ended; the job's end, if it was the last of it."""
        keys = [run.key for run in part.configurations]
        return self._note(part.job, dict(zip(keys, outcomes, strict=True)))

    def die(self, part: Part, how: str) -> list[Ended]:
        """A worker's process ended, `how` says by what: its unfinished runs wait again, in halves.

        So memory that did not suffice for all may suffice for half, and a run that kills its process is in the end
        alone with it, and is recorded as failed.
        """
        outcomes: dict[str, Outcome] = {}
        for run in part.configurations:
            status = self._records.status(run)
            if status in FINISHED:
                outcomes[run.key] = status
        left = tuple(run for run in part.configurations if run.key not in outcomes)
        if len(left) > 1:
            half = len(left) // 2
            self.waiting.extendleft(Part(part.job, runs, PATIENCE) for runs in (left[half:], left[:half]))
        elif left:
            _record_death(left[0], how, self._records)
            outcomes[left[0].key] = "failed"
        return self._note(part.job, outcomes)

    def _note(self, job: int, outcomes: Mapping[str, Outcome]) -> list[Ended]:
        known = self._outcomes[job]
        known.update(outcomes)
        keys = [run.key for run in self._jobs[job].configurations]
        return [Ended(job, tuple(known[key] for key in keys))] if len(known) == len(keys) else []


class Sharing:
    """How many jobs a GPU's memory serves at once, measured on the first.

    The job that is expected to need most comes first and has the GPU to itself until its first epoch has ended. What
    the GPU has in use then, by whomever, is what each job is taken to need. Not yet run on a GPU.
    """

    def __init__(self, ledger: Ledger, jobs: Sequence[Job]) -> None:
        self.fraction: float = 1.0
        self.measures = True
        largest = max(ledger.waiting, key=lambda part: jobs[part.job].bytes or 0, default=None)
        if largest:
            ledger.waiting.remove(largest)
            ledger.waiting.appendleft(largest)

    @property
    def at_once(self) -> int:
        return max(int(1 / self.fraction), 1)

    def see(self, event: Event) -> None:
        """Take the measure from the first epoch that ends."""
        if self.measures and isinstance(event, Epoch) and event.epoch and event.memory:
            needed = event.memory.used / (MEMORY_SHARE * event.memory.total)
            self.fraction = min(math.ceil(needed * GPU_PARTS) / GPU_PARTS, 1.0)
            self.measures = False


def _record_death(run: Configuration, how: str, records: Records) -> None:
    from ablations.training import environment

    message = f"the process that trained this run alone {how}"
    with records.claim([run], PATIENCE) as mine:
        for configuration in mine:
            records.save(configuration, Result("failed", {}, message), environment=environment())
