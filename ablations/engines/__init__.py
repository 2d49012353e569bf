"""Where jobs run: an engine takes jobs and yields what happens; every engine leaves the same records."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ablations.plan import Job
from ablations.records import Records, Status


@dataclass(frozen=True)
class Epoch:
    """A job has finished an epoch; epoch 0 says that it has started."""

    job: int  # its place among the jobs given to the engine
    epoch: int
    epochs: int
    validation_loss: float  # median of its runs


@dataclass(frozen=True)
class Ended:
    """A job has ended and its runs are on record."""

    job: int
    statuses: tuple[Status, ...]


class Engine(Protocol):
    def run(self, jobs: Sequence[Job], records: Records) -> Generator[Epoch | Ended, None, None]:
        """Run the jobs; closing the generator stops those under way and keeps what is done."""
