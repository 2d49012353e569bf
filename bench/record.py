"""Measures the main table on all threads and on one, and publishes it under bench/results and in the README."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench import readme
from bench.machine import file_name
from bench.readme import RESULTS, ROOT
from bench.results import read, write_slim
from bench.table import render
from bench.workers import Conditions


def record() -> int:
    """The exit status of the first run of pytest that failed, if any: its results are not published."""
    for threads in sorted({torch.get_num_threads(), 1}, reverse=True):
        with tempfile.TemporaryDirectory() as folder:
            measured = Path(folder, "result.json")
            command = ["--benchmark", f"--benchmark-threads={threads}", f"--benchmark-json={measured}"]
            status = subprocess.run([sys.executable, "-m", "pytest", *command], cwd=ROOT, check=False).returncode
            if status != 0:
                return status
            publish(measured, file_name(Conditions(threads)))
    return readme.write()


def publish(measured: Path, name: str) -> None:
    """Put a result under bench/results, as numbers and as a table."""
    write_slim(measured, RESULTS / f"{name}.json")
    results = read(RESULTS / f"{name}.json")
    (RESULTS / f"{name}.txt").write_text(render(results.rows, results.title, color=False))
