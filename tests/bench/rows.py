"""Made-up results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from bench.results import Row

ROW = Row(
    group="conv-train",
    shape="B1-C3",
    other="torch.nn",
    part="step",
    clock="wall",
    ratio=4.0,
    low=3.9,
    high=4.1,
    won=1.0,
    band=1.02,
    verdict="faster",
    logs=(math.log(3.95), math.log(4.0), math.log(4.05)),
    milliseconds=0.5,
    other_milliseconds=2.0,
    gflops_per_second=20.0,
    bound="arithmetic",
    limit_share=0.25,
    intensity=8.0,
    peak_gflops_per_second=80.0,
    peak_gigabytes_per_second=100.0,
    held_megabytes=1.0,
    other_held_megabytes=2.0,
    blocks=100,
    threads=2,
    device="cpu",
)

ABOUT = {
    **{"recurve": "0.1.0", "torch": "2.13.0", "python": "3.11", "machine": "a machine, 2 cores", "kernels": "avx512"},
    **{"threads": "2", "device": "cpu", "dtype": "float32"},
}


def row(shape: str, *ratios: float, **changed: object) -> Row:
    logs = tuple(math.log(ratio) for ratio in ratios)
    mean = math.exp(float(np.mean(logs)))
    return replace(ROW, shape=shape, ratio=mean, low=min(ratios), high=max(ratios), logs=logs, **changed)  # type: ignore[arg-type]


def written(path: Path, rows: Sequence[Row], **about: str) -> Path:
    benchmarks = [{"name": row.case, "extra_info": {"rows": [asdict(row)]}} for row in rows]
    machine = {"recurve": ABOUT | about}
    path.write_text(json.dumps({"datetime": "2026-11-24T00:00:00", "machine_info": machine, "benchmarks": benchmarks}))
    return path
