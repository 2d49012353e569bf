"""`pytest --benchmark` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.cases import name_of, parse
from bench.conftest import Session
from bench.declared import cases
from bench.results import read
from bench.workers import Measurement

ROOT = Path(__file__).parents[2]


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def collected(*arguments: str) -> list[str]:
    return [line for line in run_pytest("--collect-only", "-q", *arguments).stdout.splitlines() if "::" in line]


def test_with_the_flag_only_benchmarks_run() -> None:
    found = collected("--benchmark")
    assert {line.split("::")[0] for line in found} == {"bench/test_cases.py"}
    names = [line.split("[")[1].rpartition("-process")[0] for line in found]
    assert {name_of(case) for case in cases()} < set(names)
    assert names == names[: len(names) // 4] * 4  # a round of all cases in each of four processes


def test_without_the_flag_no_benchmark_runs_even_when_named() -> None:
    found = collected("bench/test_cases.py", "tests/bench/test_table.py")
    assert {line.split("::")[0] for line in found} == {"tests/bench/test_table.py"}


def test_words_choose_cases() -> None:
    found = collected("--benchmark", "-k", "GRU and train or depthwise and K7")
    assert {line.split("[")[1].split("-")[0] for line in found} == {"recurrent", "ensemble", "conv"}
    assert all("GRU-train" in line or "K7-depthwise" in line for line in found)


def test_a_case_that_is_declared_nowhere_is_taken_from_the_command_line() -> None:
    found = collected("--benchmark", "--benchmark-processes=2", "--benchmark-case=conv-train-B3-C2-O5-S9-K3")
    assert found == [f"bench/test_cases.py::test_case[conv-train-B3-C2-O5-S9-K3-process{number}]" for number in (0, 1)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--benchmark-threads", "0"),
        ("--benchmark-seconds", "-1"),
        ("--benchmark-seconds", "soon"),
        ("--benchmark-processes", "1"),
        ("--benchmark-case", "recurrent-GRU-train-T30"),
        ("--benchmark-peers", "caffe"),
    ],
)
def test_a_bad_option_is_named_with_its_value(
    option: str, value: str, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = pytestconfig._parser
    with pytest.raises((SystemExit, pytest.UsageError)) as caught:
        parser.parse([f"{option}={value}"])
    complaint = f"{caught.value}{capsys.readouterr().err}"
    assert option in complaint
    assert value in complaint


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (
            "--benchmark-csv=nowhere/pairs.csv",
            "--benchmark-csv nowhere/pairs.csv cannot be written: there is no folder",
        ),
        ("--benchmark-json=bench", "--benchmark-json bench cannot be written: it is a folder"),
        ("--benchmark-tf32", "--benchmark-tf32 is for --benchmark-device cuda"),
    ],
)
def test_what_would_fail_in_the_end_is_refused_at_the_start(option: str, complaint: str) -> None:
    result = run_pytest("--benchmark", option)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert complaint in result.stderr


def test_a_case_named_twice_is_measured_once() -> None:
    twice = ("--benchmark-case=recurrent-GRU-infer-T5-B4-I8-H8", "--benchmark-case=recurrent-GRU-infer-T5-B4-I8-H8-L1")
    assert len(collected("--benchmark", "--benchmark-processes=2", *twice)) == 2


def test_a_bad_option_ends_before_anything_runs() -> None:
    result = run_pytest("--benchmark", "--benchmark-seconds=soon")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--benchmark-seconds: 'soon' is not a number of seconds above 0" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmarks_end_before_anything_runs() -> None:
    result = run_pytest("--benchmark", "--benchmark-device=cuda")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--benchmark-device cuda: torch" in result.stderr
    assert "can use no GPU here; use cpu" in result.stderr


def test_one_case_prints_its_row_and_leaves_the_same_in_the_files(tmp_path: Path) -> None:
    name = "recurrent-GRU-train-T5-B4-I3-H8"
    path, pairs = tmp_path / "result.json", tmp_path / "pairs.csv"
    path.touch()
    result = run_pytest(
        *("--benchmark", f"--benchmark-case={name}", "--benchmark-seconds=0.05", "--benchmark-threads=1"),
        *("--benchmark-processes=2", "--benchmark-json", str(path), f"--benchmark-csv={pairs}"),
    )
    assert result.returncode == 0, result.stdout
    (row,) = (line.split() for line in result.stdout.splitlines() if line.strip().startswith("T5-B4-I3-H8"))
    (benchmark,) = json.loads(path.read_text())["benchmarks"]
    info = benchmark["extra_info"]
    assert benchmark["group"] == "recurrent-GRU-train"
    assert row[1] == f"{info['ratio']:.2f}"
    assert info["verdict"] in row

    found = read(path)
    assert [row.part for row in found.rows] == ["step", "forward", "backward"]
    step = found.rows[0]
    assert (step.case, step.other, step.threads, len(step.logs)) == (name, "torch.nn", 1, 2)
    assert benchmark["stats"]["rounds"] == step.blocks
    assert benchmark["stats"]["median"] == pytest.approx(step.milliseconds / 1e3)
    assert {"torch", "machine", "kernels", "date"} <= set(found.about)

    blocks = pd.read_csv(pairs).groupby(["competitor", "process", "block"])["seconds"].sum()
    ours, native = blocks["recurve"], blocks["torch.nn"]
    assert len(ours) == len(native) == step.blocks
    logs = np.log(native / ours).groupby("process").median()
    assert tuple(logs) == pytest.approx(step.logs)


def test_an_interrupted_run_counts_whole_rounds_of_sound_cases_alone() -> None:
    slow, fast, wrong = (parse(f"recurrent-GRU-train-T{steps}-B1-I1-H1") for steps in (1, 2, 3))
    race = Measurement({}, None)
    session = Session({slow: [race] * 2, fast: [race] * 3, wrong: [race]}, {wrong})
    assert {case: len(found) for case, found in session.complete.items()} == {slow: 2, fast: 2}
    assert Session().complete == {}
