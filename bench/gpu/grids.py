"""Runs a study's grid on the GPU, or compares a few seeds with the CPU: `python -m bench.gpu.grids STUDY RUNS FILE`.

Appends to FILE, as one JSON line, the grid's wall time, also of a grid that the time of its stage cut; with
`--compare`, how far runs of the same seed that the grid left in the folder RUNS differ between the devices, and in how
many conditions the effect on the primary response points the same way. Random numbers come from the same streams on
both, so that runs differ by rounding alone; training magnifies it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from ablations import studies
from ablations.records import Records
from bench.gpu import SECONDS

SEEDS = {"epidemic": 72, "vision": 8}  # a condition; 72 make more than 1,000 runs of `epidemic`
SEEDS_ON_CPU = 2
# Processes take turns on a GPU, never side by side: a few hide what each does on the CPU, more wait for each other.
# With sixteen on an H200, an ensemble of 31 took 13 to 19 s.
WORKERS_ON_GPU = 4
TO_END = 15.0  # seconds that stopping and reading take
LARGEST_DIFFERENCE = 0.05  # relative, the median over runs


def timed(study: str, seeds: int, device: str, runs: Path) -> tuple[float, bool]:
    """Seconds that the smoke preset's grid takes there, and whether it came to its end in the stage's time."""
    command = [sys.executable, "-m", "ablations", "run", study, "--preset", "smoke", "--seeds", str(seeds)]
    command += ["--runs", str(runs), *(["--workers", str(WORKERS_ON_GPU)] if device == "cuda" else [])]
    start, limit = time.monotonic(), max(float(os.environ.get(SECONDS, "inf")) - TO_END, 1.0)
    process = subprocess.Popen(command, env={**os.environ, "ABLATE_DEVICE": device})
    try:
        ended = process.wait(None if limit == math.inf else limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(TO_END / 2)
        except subprocess.TimeoutExpired:  # it ignores that, as what a shell started in the background does
            process.kill()
            process.wait()
        return time.monotonic() - start, False
    if ended not in (0, 1):  # 1: some runs failed, which the record tells
        raise SystemExit(f"{study} on {device} ended with {ended}")
    return time.monotonic() - start, True


def compared(response: str, baseline: dict[str, str], gpu: pd.DataFrame, cpu: pd.DataFrame) -> dict[str, Any]:
    """How far apart `response` is in runs that both tables hold, and whether effects point the same way."""
    factors = list(baseline)
    both = gpu.merge(cpu, on=[*factors, "seed"], suffixes=("_gpu", "_cpu"))
    theirs, ours = both[f"{response}_cpu"], both[f"{response}_gpu"]
    condition = both[factors].agg("+".join, axis=1)
    means = pd.DataFrame({"gpu": ours, "cpu": theirs}).groupby(condition).mean()
    first = "+".join(baseline.values())
    effects = (means - means.loc[first]).drop(index=first)
    return {
        "runs_compared": len(both),
        "median_difference": float(((ours - theirs).abs() / theirs.abs()).median()),
        "same_direction": float((effects["gpu"] * effects["cpu"] >= 0).mean()),
    }


def grid(study: str, runs: Path) -> dict[str, Any]:
    """The whole grid on the GPU."""
    seconds, finished = timed(study, SEEDS[study], "cuda", runs)
    table = Records(runs).table(study)
    statuses = Counter(map(str, table["status"])) if len(table) else {}  # without runs there are no columns either
    found = {"runs": len(table), "statuses": statuses, "workers": WORKERS_ON_GPU}
    return {"grid": study, "seconds": seconds, "finished": finished, **found}


def comparison(study: str, runs: Path) -> dict[str, Any]:
    """A few seeds on the CPU, beside those that the grid left."""
    of_grid = Records(runs).table(study)
    if not len(of_grid):
        raise SystemExit(f"the grid of {study} left no runs to compare")
    with tempfile.TemporaryDirectory() as folder:
        seconds, finished = timed(study, SEEDS_ON_CPU, "cpu", Path(folder))
        declared = studies.load(study)
        response = declared.responses[0].name
        found = compared(response, dict(declared.baseline.levels), of_grid, Records(Path(folder)).table(study))
    return {"comparison": study, "cpu_seconds": seconds, "finished": finished, "response": response, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=SEEDS)
    parser.add_argument("runs", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    row = (comparison if arguments.compare else grid)(arguments.study, arguments.runs)
    with arguments.file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    print(row)
    return 0 if row["finished"] and row.get("median_difference", 0) <= LARGEST_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
