"""Builds, tests, checks and measures on the GPU of this machine: `make gpu`, or `python -m bench.gpu`.

Writes bench/results/<gpu>.json after every stage, and all that the stages say to bench/results/<gpu>.log. Each stage
has a limit of its own, so that one that hangs costs no other; all together stay below ten minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
OPS = [f"tests/recurve/test_{name}.py" for name in ("ops_recurrent", "probe", "derivatives", "transforms")]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "cuda_ops"]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Stage:
    """A command, and the seconds that it may take."""

    name: str
    command: list[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None  # a program


@dataclass
class Done:
    name: str
    status: str  # "passed", "failed", "out of time", or "skipped: " and why
    seconds: float
    said: str  # the end of it


def stages(capability: str, lines: Path) -> list[Stage]:
    """All stages, for a GPU of this compute capability; measurements go to `lines`, one JSON object each."""
    build = {"RECURVE_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": capability, **toolkit()}
    study = [sys.executable, "-m", "ablations", "run", "epidemic", "--preset", "smoke", "--runs"]
    exercise = [sys.executable, "-m", "bench.gpu.exercise"]
    return [
        Stage("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 200, build),
        Stage("status", [sys.executable, "-m", "recurve"], 20),
        Stage("tests of the ops", [*PYTEST, *OPS], 100),
        Stage("tests of tensor cores", [*PYTEST, "tests/recurve/tensor_cores.py"], 20),
        Stage("1000 repeats", [*exercise, "--repeats", "1000"], 25),
        *(
            Stage(
                sanitizer,
                ["compute-sanitizer", "--tool", sanitizer, "--error-exitcode", "1", *exercise],
                20,
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                needs="compute-sanitizer",
            )
            for sanitizer in SANITIZERS
        ),
        Stage("a study on the GPU", [*study, str(lines.with_suffix(".runs"))], 40, {"ABLATE_DEVICE": "cuda"}),
        Stage("measurements", [sys.executable, "-m", "bench.gpu.measure", str(lines)], 120),
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
        for stage in stages(gpu["capability"], lines):
            done = run(stage, log)
            print(f"{done.status:<12} {done.seconds:6.1f} s  {stage.name}", flush=True)
            results["stages"].append(asdict(done))
            if lines.exists():
                results["measurements"] = [json.loads(line) for line in lines.read_text().splitlines()]
            (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    lines.unlink(missing_ok=True)
    shutil.rmtree(lines.with_suffix(".runs"), ignore_errors=True)
    failed = [done["name"] for done in results["stages"] if done["status"] in ("failed", "out of time")]
    print(f"{RESULTS / stem}.json and .log" + (f"; not passed: {', '.join(failed)}" if failed else "; all passed"))
    return 1 if failed else 0


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


def run(stage: Stage, log: Any) -> Done:
    """Run one stage in a process group of its own, which ends with it."""
    if stage.needs is not None and shutil.which(stage.needs) is None:
        return Done(stage.name, f"skipped: {stage.needs} is not found", 0.0, "")
    log.write(f"\n==== {stage.name}: {' '.join(stage.command)}\n")
    log.flush()
    start = time.monotonic()
    paths = [str(ROOT / "tests" / "cuda"), str(ROOT / "tests" / "recurve"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **stage.environment}
    begin = log.tell()
    process = subprocess.Popen(
        stage.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        status = "passed" if process.wait(stage.limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = "out of time"
    log.seek(0, os.SEEK_END)
    said = Path(log.name).read_bytes()[begin:].decode(errors="replace")
    return Done(stage.name, status, round(time.monotonic() - start, 1), said[-2000:])


def commit() -> str | None:
    """Of this checkout, with `-dirty` if it has changes; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
