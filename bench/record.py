"""Measures the main table on all threads and on one, and publishes it under bench/results and in the README."""

from __future__ import annotations

import subprocess
import sys

import torch

from bench import readme
from bench.machine import file_name
from bench.readme import RESULTS, ROOT
from bench.results import read
from bench.table import render
from bench.workers import Conditions


def record() -> int:
    """The exit status of the first run of pytest that failed, if any: its results are not published."""
    for threads in sorted({torch.get_num_threads(), 1}, reverse=True):
        path = RESULTS / f"{file_name(Conditions(threads))}.json"
        command = ["--benchmark", f"--benchmark-threads={threads}", f"--benchmark-json={path}"]
        status = subprocess.run([sys.executable, "-m", "pytest", "-q", *command], cwd=ROOT, check=False).returncode
        if status != 0:
            path.unlink(missing_ok=True)
            return status
        results = read(path)
        path.with_suffix(".txt").write_text(render(results.rows, results.title, color=False))
    return readme.write()
