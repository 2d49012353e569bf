"""Claims on `make gpu`: it needs a GPU and says so, and no stage that fails or hangs costs the others."""

import json
import sys

import pandas as pd
import pytest

from bench.gpu import __main__ as gpu
from bench.gpu.__main__ import Stage
from bench.gpu.grids import compared

GPU = {"name": "NVIDIA Test GPU", "capability": "9.0"}


def python(code, name="a stage", limit=60.0, **options):
    return Stage(name, [sys.executable, "-c", code], limit, **options)


def test_without_a_gpu_one_sentence_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("make gpu: torch ")
    assert "CUDA" in said or "GPU" in said


def test_all_rounds_end_within_ten_minutes(tmp_path):
    rounds = gpu.rounds("9.0", tmp_path / "lines")
    assert sum(max(stage.limit for stage in stages) for stages in rounds) < 600
    names = [stage.name for stages in rounds for stage in stages]
    assert len(set(names)) == len(names)


def test_every_file_that_a_stage_tests_exists(tmp_path):
    for stages in gpu.rounds("9.0", tmp_path / "lines"):
        for stage in stages:
            for word in stage.command:
                assert not word.endswith(".py") or (gpu.ROOT / word).exists(), word


@pytest.mark.parametrize(
    ("stage", "status"),
    [
        (python("print('fine')"), "passed"),
        (python("import sys; sys.exit(3)"), "failed"),
        (python("import time; time.sleep(60)", limit=0.5), "out of time"),
        (python("", needs="no-such-program"), "skipped: no-such-program is not found"),
    ],
    ids=["passes", "fails", "hangs", "lacks a program"],
)
def test_a_stage_ends_in_one_of_four_ways(stage, status):
    done, _ = gpu.run(stage)
    assert done.status == status
    assert done.seconds < 30


def test_results_of_other_stages_survive_one_that_fails_and_one_that_hangs(monkeypatch, tmp_path, capsys):
    def rounds(capability, lines):
        row = json.dumps({"group": "GRU training", "ratio": 4.0})
        return [
            [python("print('built')", "build")],
            [
                python("import sys; sys.exit(1)", "fails"),
                python("import time; time.sleep(60)", "hangs", limit=0.5),
                python(f"print({row!r}, file=open({str(lines)!r}, 'a'))", "measures"),
            ],
        ]

    monkeypatch.setattr(gpu, "describe_gpu", lambda: GPU)
    monkeypatch.setattr(gpu, "rounds", rounds)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.main() == 1
    results = json.loads((tmp_path / "nvidia-test-gpu.json").read_text())
    assert {stage["name"]: stage["status"] for stage in results["stages"]} == {
        "build": "passed",
        "fails": "failed",
        "hangs": "out of time",
        "measures": "passed",
    }
    assert results["table"] == [{"what": "GRU training", "ratio": 4.0, "cases": 1, "asked": 1.3, "aim": 2.0}]
    assert "built" in (tmp_path / "nvidia-test-gpu.log").read_text()
    assert "not passed: fails, hangs" in capsys.readouterr().out


def test_runs_of_two_devices_are_compared_by_condition_and_seed():
    rows = [("lstm", 0, 1.0), ("lstm", 1, 3.0), ("gru", 0, 4.0), ("gru", 1, 5.0), ("rnn", 0, 1.0), ("rnn", 1, 2.0)]
    cpu = pd.DataFrame(rows, columns=["cell", "seed", "error"])
    gpu_table = cpu.assign(error=[1.1, 3.3, 4.4, 5.5, 3.0, 2.0])
    found = compared("error", {"cell": "lstm"}, gpu_table, cpu[cpu.seed < 2])
    assert found["runs_compared"] == 6
    assert found["median_difference"] == pytest.approx(0.1)
    assert found["same_direction"] == 0.5  # gru is worse on both, rnn only on one
