"""Builds, tests, checks and measures on the GPU of this machine: `make gpu`, or `python -m bench.gpu`.

Writes bench/results/<gpu>.json after every round of stages, and all that the stages say to bench/results/<gpu>.log.
Stages of a round run side by side; each has a limit of its own, so that one that hangs costs no other, and all end
within ten minutes, or `--seconds`. A stage that lacks a program or a package is skipped and says so; without the build,
all others are. With `--built`, the extension is taken as it lies in the tree.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from bench.gpu import PARTS, SECONDS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
TESTS = Path("tests", "recurve")
OPS = [str(TESTS / f"test_{name}.py") for name in ("ops_recurrent", "ops_conv", "probe", "derivatives", "transforms")]
MODULES = [str(TESTS / f"test_{name}.py") for name in ("nn_recurrent", "nn_conv")]
ONLY_CUDA = [str(TESTS / f"{name}.py") for name in ("tensor_cores", "cuda_convolution")]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "cuda_ops"]
BENCHMARK = [  # a few cases: that its clocks, replayed graphs and limits work on a GPU
    *(sys.executable, "-m", "pytest", "-q", "--benchmark", "--benchmark-device", "cuda"),
    *("--benchmark-seconds", "0.2", "--benchmark-processes", "2"),  # each takes its time to start
    *("-k", "train and (T30-B32-I3-H32 or C1-O16-S28-K3)"),
]
FORCED = "RECURVE_CUDA_DESIGN"
ASKED = (  # of native time / ours, geometric means on an H200: least, and aim
    ("GRU training", 1.3, 2.0),
    ("LSTM training", 1.1, 1.5),
    ("ensemble training", 30.0, 100.0),
    ("convolution training", 2.0, 5.0),
)
ALL_SECONDS = 590.0
USUAL_TOOLKIT = Path("/usr/local/cuda")
SERVES = """
import sys, torch, recurve
from recurve import _extension
print(recurve.status())
sys.exit(_extension.obstacle("lstm", torch.device("cuda"), torch.float32))
"""


@dataclass(frozen=True)
class Stage:
    """A command, and the seconds that it may take."""

    name: str
    command: list[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None  # a program
    imports: tuple[str, ...] = ()  # packages that not every machine with torch has
    essential: bool = False  # without it, what follows has no sense


@dataclass
class Done:
    name: str
    status: str  # "passed", "failed", "out of time", or "skipped: " and why
    seconds: float
    said: str  # the end of it


def rounds(capability: str, lines: Path, *, built: bool = False) -> list[list[Stage]]:
    """All stages, for a GPU of this compute capability; what they measure goes to `lines`, one JSON object each.

    A stage that is behind its time costs those at the end. The extension is built first unless it is `built`.
    """
    build = {"RECURVE_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": capability, **toolkit()}
    exercise = [sys.executable, "-m", "bench.gpu.exercise"]

    def tests(name: str, files: list[str], **environment: str) -> Stage:
        workers = ["-n", "3"] if files == OPS[:1] and importlib.util.find_spec("xdist") else []
        return Stage(name, [*PYTEST, *workers, *files], 150, environment, imports=("pytest", "hypothesis"))

    def sanitizer(tool: str, *parts: str) -> Stage:
        # Whether memory was written is known only where the kernels of torch are watched too.
        ours = [] if tool == "initcheck" else ["--kernel-name", "kns=recurve"]
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", "--launch-timeout", "60", *ours]
        chosen = ["--watched", "--repeats", "0", *(["--only", *parts] if parts else [])]
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        name = " of ".join([tool, *parts])
        return Stage(name, [*command, *exercise, *chosen], 100, environment, needs="compute-sanitizer")

    def grid(study: str, limit: float, *options: str) -> Stage:
        command = [
            sys.executable,
            "-m",
            "bench.gpu.grids",
            study,
            str(lines.with_suffix(".runs")),
            str(lines),
            *options,
        ]
        needed = ("pandas", "scipy", "psutil", "rich", *(["kornia"] if study == "vision" else []))
        return Stage(f"a grid of {study}{', compared with the CPU' * bool(options)}", command, limit, imports=needed)

    building = Stage("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 240, build, essential=True)
    return [
        *([] if built else [[building]]),
        [Stage("status", [sys.executable, "-c", SERVES], 60, essential=True)],
        [
            tests("tests of the recurrent ops", OPS[:1]),
            tests("tests of the convolution block", OPS[1:2]),
            tests("tests of probe, derivatives and transforms", OPS[2:]),
            tests("tests of the recurrent ops where blocks share a model", OPS[:1], **{FORCED: "grid"}),
            tests("tests of the recurrent ops step by step", OPS[:1], **{FORCED: "steps"}),
            tests("tests of what only CUDA has", ONLY_CUDA),
            tests("tests of the modules", MODULES),
            Stage("1000 repeats", [*exercise, "--repeats", "1000"], 100),
            sanitizer("memcheck"),
            sanitizer("synccheck"),
            # Slow ones, which have ended with errors of their own: part by part, to tell which are clean.
            *(sanitizer(tool, part) for tool in ("racecheck", "initcheck") for part in PARTS),
        ],
        [Stage("measurements", [sys.executable, "-m", "bench.gpu.measure", str(lines)], 110)],
        [Stage("pytest --benchmark", BENCHMARK, 60, imports=("pytest", "pytest_benchmark", "pandas", "scipy", "rich"))],
        [grid("epidemic", 120)],
        [grid("vision", 60)],
        [grid(study, 60, "--compare") for study in ("epidemic", "vision")],
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--built", action="store_true", help="take the extension as it lies in the tree")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="for all stages; default: %(default)s")
    chosen = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        gpu = describe_gpu()
    except RuntimeError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    RESULTS.mkdir(exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    lines = RESULTS / f"{stem}.lines"
    lines.unlink(missing_ok=True)
    shutil.rmtree(lines.with_suffix(".runs"), ignore_errors=True)
    results: dict[str, Any] = {"gpu": gpu, "date": datetime.now(UTC).isoformat(), "commit": commit(), "stages": []}
    lacking = None  # the essential stage that did not pass
    with (RESULTS / f"{stem}.log").open("w") as log:
        for stages in rounds(gpu["capability"], lines, built=chosen.built):
            with ThreadPoolExecutor(len(stages)) as pool:
                left = chosen.seconds - (time.monotonic() - start)
                for done, said in pool.map(lambda stage: run(stage, left, lacking), stages):  # noqa: B023 -- in this turn
                    if done.status != "passed" and any(stage.essential for stage in stages):
                        lacking = lacking or done.name
                    print(f"{done.status:<12} {done.seconds:6.1f} s  {done.name}", flush=True)
                    log.write(f"\n==== {done.name}: {done.status} after {done.seconds} s\n{said}")
                    log.flush()
                    results["stages"].append(asdict(done))
            if lines.exists():
                results["measurements"] = [json.loads(line) for line in lines.read_text().splitlines()]
                results["table"] = table(results["measurements"])
            (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    lines.unlink(missing_ok=True)
    shutil.rmtree(lines.with_suffix(".runs"), ignore_errors=True)
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
    chosen = [row["ratio_chosen"] for row in measurements if "ratio_chosen" in row]
    if chosen:  # the path that the selector takes must never lose
        what = "the slowest case, as the selector has it"
        found.append({"what": what, "ratio": min(chosen), "cases": len(chosen), "asked": 1.0, "aim": 1.0})
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
    found = "CUDA_HOME" not in os.environ and (USUAL_TOOLKIT / "include" / "cuda_runtime.h").exists()
    return {"CUDA_HOME": str(USUAL_TOOLKIT)} if found else {}


def obstacle(stage: Stage, left: float, lacking: str | None) -> str | None:
    """Why a stage cannot run, if so."""
    if lacking is not None:
        return f"'{lacking}' did not pass"
    if left < 1:
        return "no time is left"
    if stage.needs is not None and shutil.which(stage.needs, path=programs()) is None:
        return f"{stage.needs} is not found"
    missing = [package for package in stage.imports if importlib.util.find_spec(package) is None]
    return f"{', '.join(missing)} cannot be imported" if missing else None


def programs() -> str:
    """Where programs are looked for: the PATH, then the toolkit's."""
    home = os.environ.get("CUDA_HOME", USUAL_TOOLKIT)
    return os.pathsep.join([os.environ.get("PATH", ""), f"{home}/bin"])


def run(stage: Stage, left: float = ALL_SECONDS, lacking: str | None = None) -> tuple[Done, str]:
    """Run one stage in a process group of its own, which ends with it or with the time; returns also all it said."""
    why = obstacle(stage, left, lacking)
    if why is not None:
        return Done(stage.name, f"skipped: {why}", 0.0, ""), ""
    start = time.monotonic()
    paths = [str(ROOT), str(ROOT / "tests" / "cuda"), str(ROOT / "tests" / "recurve"), os.environ.get("PYTHONPATH", "")]
    found = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PATH": programs(), "PYTHONUNBUFFERED": "1"}
    seconds = min(stage.limit, left)
    environment = {**os.environ, **found, SECONDS: str(seconds), **stage.environment}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "passed" if process.wait(seconds) == 0 else "failed"
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
