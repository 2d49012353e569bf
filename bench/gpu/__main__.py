"""Builds, tests, checks and measures on the GPU of this machine: `make gpu`, or `python -m bench.gpu`.

Writes bench/results/<gpu>.json after every round of stages, and all that the stages say to bench/results/<gpu>.log.
Stages of a round run side by side; each has a limit of its own, so that one that hangs costs no other, and all rounds
together stay below ten minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import geometric_mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
TESTS = Path("tests", "recurve")
OPS = [str(TESTS / f"test_{name}.py") for name in ("ops_recurrent", "ops_conv", "probe", "derivatives", "transforms")]
ONLY_CUDA = [str(TESTS / f"{name}.py") for name in ("tensor_cores", "cuda_convolution")]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "cuda_ops"]
FORCED = "RECURVE_CUDA_DESIGN"
ASKED = (  # of native time / ours, geometric means on an H200: least, and aim
    ("GRU training", 1.3, 2.0),
    ("LSTM training", 1.1, 1.5),
    ("ensemble training", 30.0, 100.0),
    ("convolution training", 2.0, 5.0),
)
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Stage:
    """A command, and the seconds that it may take."""

    name: str
    command: list[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None  # a program
    imports: tuple[str, ...] = ()  # packages that not every machine with torch has


@dataclass
class Done:
    name: str
    status: str  # "passed", "failed", "out of time", or "skipped: " and why
    seconds: float
    said: str  # the end of it


def rounds(capability: str, lines: Path) -> list[list[Stage]]:
    """All stages, for a GPU of this compute capability; what they measure goes to `lines`, one JSON object each.

    What no other stage needs comes last: a limit on all of it cuts there.
    """
    build = {"RECURVE_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": capability, **toolkit()}
    exercise = [sys.executable, "-m", "bench.gpu.exercise"]

    def sanitizer(tool: str) -> Stage:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *exercise, "--few"]
        return Stage(tool, command, 70, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, needs="compute-sanitizer")

    def tests(name: str, files: list[str], **environment: str) -> Stage:
        return Stage(name, [*PYTEST, *files], 110, environment, imports=("pytest", "hypothesis"))

    def grid(study: str, limit: float, *imports: str) -> Stage:
        command = [sys.executable, "-m", "bench.gpu.grids", study, str(lines)]
        return Stage(f"a grid of {study}", command, limit, imports=("pandas", "scipy", "psutil", "rich", *imports))

    return [
        [Stage("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 170, build)],
        [Stage("status", [sys.executable, "-m", "recurve"], 15)],
        [
            tests("tests of the ops", OPS),
            tests("tests of the ops where blocks share a model", OPS[:1], **{FORCED: "grid"}),
            tests("tests of the ops step by step", OPS[:1], **{FORCED: "steps"}),
            tests("tests of what only CUDA has", ONLY_CUDA),
        ],
        [Stage("1000 repeats", [*exercise, "--repeats", "1000"], 70), *map(sanitizer, SANITIZERS)],
        [grid("epidemic", 75)],
        [grid("vision", 40)],
        [Stage("measurements", [sys.executable, "-m", "bench.gpu.measure", str(lines)], 100)],
    ]


def main() -> int:
    try:
        gpu = describe_gpu()
    except RuntimeError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    RESULTS.mkdir(exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    lines = RESULTS / f"{stem}.lines"
    lines.unlink(missing_ok=True)
    results: dict[str, Any] = {"gpu": gpu, "date": datetime.now(UTC).isoformat(), "commit": commit(), "stages": []}
    with (RESULTS / f"{stem}.log").open("w") as log:
        for stages in rounds(gpu["capability"], lines):
            with ThreadPoolExecutor(len(stages)) as pool:
                for done, said in pool.map(run, stages):
                    print(f"{done.status:<12} {done.seconds:6.1f} s  {done.name}", flush=True)
                    log.write(f"\n==== {done.name}: {done.status} after {done.seconds} s\n{said}")
                    log.flush()
                    results["stages"].append(asdict(done))
            if lines.exists():
                results["measurements"] = [json.loads(line) for line in lines.read_text().splitlines()]
                results["table"] = table(results["measurements"])
            (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    lines.unlink(missing_ok=True)
    for row in results.get("table", []):
        print(f"{row['what']}: {row['ratio']:.2f} over {row['cases']} cases, asked {row['asked']}, aim {row['aim']}")
    failed = [done["name"] for done in results["stages"] if done["status"] in ("failed", "out of time")]
    print(f"{RESULTS / stem}.json and .log" + (f"; not passed: {', '.join(failed)}" if failed else "; all passed"))
    return 1 if failed else 0


def table(measurements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means of native time / ours, beside what is asked and aimed at."""
    found = []
    for what, asked, aim in ASKED:
        ratios = [row["ratio"] for row in measurements if row.get("group") == what and "ratio" in row]
        if ratios:
            row = {"what": what, "ratio": geometric_mean(ratios), "cases": len(ratios), "asked": asked, "aim": aim}
            found.append(row)
    return found


def describe_gpu() -> dict[str, str]:
    """Name, capability and software of the first GPU. Raises `RuntimeError` that says what is missing."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(f"{error}; install a CUDA build of torch") from error

    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch")
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no NVIDIA GPU here; run this on a machine that has one, with its driver")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise RuntimeError(f"the GPU has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer")
    return {
        "name": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def toolkit() -> dict[str, str]:
    """CUDA_HOME where none is set and the toolkit is in its usual place; an nvcc on the PATH may be a link to it."""
    usual = Path("/usr/local/cuda")
    found = "CUDA_HOME" not in os.environ and (usual / "include" / "cuda_runtime.h").exists()
    return {"CUDA_HOME": str(usual)} if found else {}


def run(stage: Stage) -> tuple[Done, str]:
    """Run one stage in a process group of its own, which ends with it; returns also all it said."""
    if stage.needs is not None and shutil.which(stage.needs) is None:
        return Done(stage.name, f"skipped: {stage.needs} is not found", 0.0, ""), ""
    start = time.monotonic()
    paths = [str(ROOT / "tests" / "cuda"), str(ROOT / "tests" / "recurve"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **stage.environment}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "passed" if process.wait(stage.limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = "out of time"
        output.seek(0)
        said = f"{' '.join(stage.command)}\n{output.read().decode(errors='replace')}"
    return Done(stage.name, status, round(time.monotonic() - start, 1), said[-2000:]), said


def commit() -> str | None:
    """Of this checkout, with `-dirty` if it has changes; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
