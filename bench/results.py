"""What a measurement says, as rows; how rows lie in a pytest-benchmark file, and single blocks in a CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case
from bench.limits import Limits
from bench.protocol import NATIVE, OURS, TWIN, Race
from bench.ratios import Ratio, Verdict, compare
from bench.workers import Conditions, Measurement

PARTS = ("step", "forward", "backward")
TOLD = {"recurve", "torch", "dtype", "threads", "machine", "device"}  # of where something was measured, at least
PAIR_COLUMNS = ("case", "clock", "process", "block", "turn", "competitor", "part", "seconds")


class ResultError(ValueError):
    """A file holds no results that can be read: which, and why."""


@dataclass(frozen=True)
class Row:
    """Ours against one other, in one part of one case by one clock; ratios are the other's time over ours.

    `logs` are the processes' median logarithms of the ratio. `limit_share` is of what the machine's arithmetic or
    memory, whichever binds (`bound`), would allow; None where it is not measured or not of the whole step.
    """

    group: str
    shape: str
    other: str
    part: str
    clock: str
    ratio: float
    low: float
    high: float
    won: float
    band: float
    verdict: Verdict
    logs: tuple[float, ...]
    milliseconds: float
    other_milliseconds: float
    gflops_per_second: float | None
    bound: str | None
    limit_share: float | None
    intensity: float | None  # multiplications and additions per byte
    peak_gflops_per_second: float | None
    peak_gigabytes_per_second: float | None  # in memory of the case's size
    held_megabytes: float | None  # for the backward pass, at most at a time
    other_held_megabytes: float | None
    blocks: int
    threads: int
    device: str

    @property
    def case(self) -> str:
        return f"{self.group}-{self.shape}"

    def as_ratio(self) -> Ratio:
        return Ratio(self.ratio, self.low, self.high, self.won, self.logs)


def rows_of(case: Case, measurements: Sequence[Measurement], conditions: Conditions) -> list[Row]:
    """Rows of all others, clocks and parts, the whole step against torch.nn first.

    Raises:
        ImpossibleSpeed: ours is faster than the machine can be.
    """
    limits = Limits.highest([m.limits for m in measurements if m.limits is not None])
    known_bytes: dict[str, int] = next((m.held_bytes for m in measurements if m.held_bytes), {})
    rows = []
    for clock in [clock for clock in measurements[0].races if all(clock in m.races for m in measurements)]:
        races = [measurement.races[clock] for measurement in measurements]
        for other in [name for name in races[0].seconds if name not in (OURS, TWIN)]:
            parts = _parts(races[0], other)
            held = known_bytes if other == NATIVE else {}
            rows += [_row(case, races, other, part, clock, limits, held, conditions) for part in parts]
    return rows


def _parts(race: Race, other: str) -> Sequence[str]:
    """Those that can be compared: the whole step always, its parts where both sides have them."""
    both = min(race.seconds[name].shape[1] for name in (OURS, other)) == 2
    return PARTS if both else PARTS[:1]


def _row(
    case: Case,
    races: Sequence[Race],
    other: str,
    part: str,
    clock: str,
    limits: Limits | None,
    held: Mapping[str, int],
    conditions: Conditions,
) -> Row:
    comparison = compare(races, other, part)
    ours, others = (np.concatenate([race.part(name, part) for race in races]) for name in (OURS, other))
    seconds = float(np.median(ours))
    whole = part == "step"
    ratio = comparison.ratio
    return Row(
        group=case.group,
        shape=case.shape,
        other=other,
        part=part,
        clock=clock,
        ratio=ratio.median,
        low=ratio.low,
        high=ratio.high,
        won=ratio.won,
        band=comparison.band,
        verdict=comparison.verdict,
        logs=ratio.logs,
        milliseconds=1e3 * seconds,
        other_milliseconds=1e3 * float(np.median(others)),
        gflops_per_second=1e-9 * case.flops / seconds if whole else None,
        bound=limits.bound(case) if limits and whole else None,
        limit_share=limits.share(case, seconds) if limits and whole else None,
        intensity=case.flops / case.bytes if whole else None,
        peak_gflops_per_second=1e-9 * limits.flops if limits and whole else None,
        peak_gigabytes_per_second=1e-9 * limits.bandwidth if limits and whole else None,
        held_megabytes=1e-6 * held[OURS] if whole and held.get(OURS) else None,
        other_held_megabytes=1e-6 * held[NATIVE] if whole and held.get(NATIVE) else None,
        blocks=len(ours),
        threads=conditions.threads,
        device=conditions.device,
    )


def extra_info(rows: Sequence[Row], measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What goes into a pytest-benchmark file beside its own statistics of ours' seconds."""
    first = rows[0]
    race = next(iter(measurements[0].races.values()))
    return {
        **{name: getattr(first, name) for name in ("ratio", "low", "high", "won", "band", "verdict", "limit_share")},
        "first_call_seconds": {
            name: max(next(iter(m.races.values())).first_seconds[name] for m in measurements)
            for name in race.first_seconds
        },
        "left_out": measurements[0].left_out,
        "others": others_share(measurements),
        "rows": [asdict(row) for row in rows],
    }


def others_share(measurements: Iterable[Measurement]) -> float | None:
    """The mean share of the processors that others took, over cases and processes; None where nobody knows."""
    known = [measurement.others for measurement in measurements if measurement.others is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class Results:
    """A result file: its rows, and where, when and with what they were measured."""

    rows: list[Row]
    about: dict[str, str]

    @property
    def title(self) -> str:
        """One line over a table."""
        threads = f"{self.about['threads']} thread{'s' if self.about['threads'] != '1' else ''}"
        versions = f"recurve {self.about['recurve']}, torch {self.about['torch']}"
        where = f"{versions}, {self.about['dtype']}, {threads}, {self.about['machine']}, {self.about['date']}"
        return where + (f"; others took {self.about['others']} of the processors" if "others" in self.about else "")


def read(path: Path) -> Results:
    """The results of `pytest --benchmark --benchmark-json=...`.

    Raises:
        ResultError: there is no such file, or it is none of ours.
    """
    try:
        data = json.loads(path.read_text())
        names = {field.name for field in fields(Row)}
        found: list[dict[str, Any]] = [row for b in data["benchmarks"] for row in b["extra_info"]["rows"]]
        rows = [Row(**({name: row[name] for name in names} | {"logs": tuple(row["logs"])})) for row in found]
        if len({len(row.logs) for row in rows}) > 1:
            raise ValueError("its cases are of unlike numbers of processes")
        about = {**data["machine_info"]["recurve"], "date": data["datetime"][:10]}
        if untold := sorted(TOLD - about.keys()):
            raise ValueError(f"it does not tell its {', '.join(untold)}")
        return Results(rows, about)
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise ResultError(f"{path}: no result of `pytest --benchmark --benchmark-json` ({reason})") from error


def write_slim(path: Path, slim: Path) -> None:
    """A result without each block's time and the processor's description: a line per case, numbers to six digits."""
    data = json.loads(path.read_text(), parse_float=lambda text: float(f"{float(text):.6g}"))
    benchmarks = [{"name": b["name"], "extra_info": b["extra_info"]} for b in data["benchmarks"]]
    head = {"datetime": data["datetime"], "machine_info": {"recurve": data["machine_info"]["recurve"]}}
    lines = ",\n".join(json.dumps(benchmark) for benchmark in benchmarks)
    slim.write_text(f'{json.dumps(head)[:-1]}, "benchmarks": [\n{lines}\n]}}\n')


def write_pairs(path: Path, measured: Mapping[str, Sequence[Measurement]]) -> None:
    """Every block of every process, competitor and part as a row of a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PAIR_COLUMNS)
        for case, measurements in measured.items():
            writer.writerows(_pairs(case, measurements))


def _pairs(case: str, measurements: Sequence[Measurement]) -> Iterable[tuple[Any, ...]]:
    for process, measurement in enumerate(measurements):
        for clock, race in measurement.races.items():
            for name, seconds in race.seconds.items():
                parts = ("forward", "backward") if seconds.shape[1] == 2 else ("step",)
                for block, (turn, values) in enumerate(zip(race.turns[name], seconds, strict=True)):
                    for part, value in zip(parts, values, strict=True):
                        yield case, clock, process, block, int(turn), name, part, f"{value:.9g}"
