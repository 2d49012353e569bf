"""`pytest --benchmark` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def collected(*arguments: str) -> list[str]:
    return [line for line in run_pytest("--collect-only", "-q", *arguments).stdout.splitlines() if "::" in line]


def test_with_the_flag_only_benchmarks_run() -> None:
    found = collected("--benchmark")
    assert {line.split("::")[0] for line in found} == {
        "bench/test_conv.py",
        "bench/test_ensemble.py",
        "bench/test_ensemble_training.py",
        "bench/test_recurrent.py",
    }


def test_without_the_flag_no_benchmark_runs_even_when_named() -> None:
    found = collected("bench/test_conv.py", "tests/bench/test_table.py")
    assert {line.split("::")[0] for line in found} == {"tests/bench/test_table.py"}


def test_words_choose_cases() -> None:
    found = collected("--benchmark", "-k", "GRU and train or depthwise and K7")
    assert {line.split("::")[0] for line in found} == {
        "bench/test_conv.py",
        "bench/test_ensemble.py",
        "bench/test_recurrent.py",
    }
    assert all("GRU-train" in line or "K7-depthwise" in line for line in found)


@pytest.mark.parametrize(
    ("option", "value"), [("--benchmark-threads", "0"), ("--benchmark-seconds", "-1"), ("--benchmark-seconds", "soon")]
)
def test_a_bad_option_is_named_before_anything_runs(option: str, value: str) -> None:
    result = run_pytest("--benchmark", f"{option}={value}")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert option in result.stderr
    assert repr(value) in result.stderr


def test_one_case_prints_its_row_and_leaves_the_same_in_the_json(tmp_path: Path) -> None:
    name = "recurrent-GRU-infer-T30-B32-I3-H32"
    path = tmp_path / "result.json"
    result = run_pytest(
        "--benchmark", "-k", name, "--benchmark-seconds=0.05", "--benchmark-threads=1", f"--benchmark-json={path}"
    )
    assert result.returncode == 0, result.stdout
    (row,) = (line.split() for line in result.stdout.splitlines() if line.strip().startswith("T30-B32-I3-H32"))
    (benchmark,) = json.loads(path.read_text())["benchmarks"]
    info = benchmark["extra_info"]
    assert benchmark["group"] == info["group"] == "recurrent-GRU-infer"
    assert row[1] == f"{info['ratio']:.2f}"
    assert info["verdict"] in row
    assert info["threads"] == 1
    assert benchmark["stats"]["rounds"] == info["blocks"]
    assert benchmark["stats"]["median"] == pytest.approx(info["milliseconds"] / 1e3)
