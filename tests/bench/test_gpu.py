"""Claims on `make gpu`: it needs a GPU and says so, and no stage that fails or hangs costs the others."""

import json
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from bench.gpu import PARTS, SECONDS, exercise, grids, measure
from bench.gpu import __main__ as gpu
from bench.gpu.__main__ import Stage
from bench.gpu.grids import compared
from recurve import _extension

GPU = {"name": "NVIDIA Test GPU", "capability": "9.0"}


def python(code, name="a stage", limit=60.0, **options):
    return Stage(name, [sys.executable, "-c", code], limit, **options)


def test_without_a_gpu_one_sentence_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("make gpu: torch ")
    assert "CUDA" in said or "GPU" in said


def test_stages_have_names_of_their_own(tmp_path):
    names = [stage.name for stages in gpu.rounds("9.0", tmp_path / "lines") for stage in stages]
    assert len(set(names)) == len(names)


def test_no_stage_outlasts_the_ten_minutes_of_all(monkeypatch, tmp_path):
    sleeps = [[python("import time; time.sleep(60)", f"sleeper {i}")] for i in range(3)]
    monkeypatch.setattr(gpu, "describe_gpu", lambda: GPU)
    monkeypatch.setattr(gpu, "rounds", lambda capability, lines, built: sleeps)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.ALL_SECONDS < 600
    start = time.monotonic()
    assert gpu.main(["--seconds", "2"]) == 1
    assert time.monotonic() - start < 20
    stages = json.loads((tmp_path / "nvidia-test-gpu.json").read_text())["stages"]
    assert [stage["status"] for stage in stages] == ["out of time", *["skipped: no time is left"] * 2]


def test_without_the_build_nothing_else_pretends_to_pass(monkeypatch, tmp_path):
    rounds = [[python("import sys; sys.exit(1)", "build", essential=True)], [python("", "tests"), python("", "more")]]
    monkeypatch.setattr(gpu, "describe_gpu", lambda: GPU)
    monkeypatch.setattr(gpu, "rounds", lambda capability, lines, built: rounds)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.main([]) == 1
    stages = json.loads((tmp_path / "nvidia-test-gpu.json").read_text())["stages"]
    assert [stage["status"] for stage in stages] == ["failed", *["skipped: 'build' did not pass"] * 2]


def test_the_status_stage_passes_only_where_the_kernels_serve_the_gpu(tmp_path):
    (status,) = [s for stages in gpu.rounds("9.0", tmp_path / "lines") for s in stages if s.name == "status"]
    done, said = gpu.run(status)
    serves = _extension.obstacle("lstm", torch.device("cuda"), torch.float32) is None
    assert done.status == ("passed" if serves else "failed")
    assert "recurve" in said


SMALL = {"steps": 3, "batch": 4, "inputs": 3, "hidden": 5}


@pytest.mark.parametrize("group", sorted({case.group for case in measure.cases()}))
def test_a_case_of_each_group_is_measured(group, monkeypatch):
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "ready", lambda step, capture=True: measure.Timed(step, captured=True))
    monkeypatch.setattr(measure, "milliseconds", lambda timed, flush: (timed.run(), 1.0)[1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    case = next(case for case in measure.cases() if case.group == group)
    few = {"models": measure.MOST_CHECKED + 1, **SMALL} if isinstance(case, measure.Case) and case.models > 1 else SMALL
    small = replace(case, **few if isinstance(case, measure.Case) else {"batch": 2, "size": 9})
    row = measure.measured(replace(small, dtype="tf32"), torch.empty(1))
    assert row["ratio"] == 1.0
    assert row["not_captured"] == []
    assert row["pairs"] >= 3
    assert row["error ours"] < 1e-5


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    steps = measure.sides(measure.Case("gru", "tf32", **SMALL))
    right = steps["ours"]
    steps["ours"] = lambda: [gradient * (1.01 if i == 1 else 1) for i, gradient in enumerate(right())]
    with pytest.raises(RuntimeError, match="ours is wrong"):
        measure.gate(measure.Case("gru", "tf32", **SMALL), steps)


@pytest.fixture
def exercised(monkeypatch, capsys):
    """What the exercise says with some arguments, on the CPU."""
    monkeypatch.setattr(exercise, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setenv("RECURVE_CUDA_DESIGN", "block")  # comes back as it was

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["exercise", *arguments])
        exercise.main()
        return capsys.readouterr().out

    return run


@pytest.mark.skipif(not _extension.has("lstm"), reason="needs the compiled extension")
def test_every_kernel_is_exercised_and_repeats(exercised):
    assert "84 calls, 1 repeats each: same results" in exercised("--repeats", "40")


@pytest.mark.skipif(not _extension.has("lstm"), reason="needs the compiled extension")
def test_sanitizers_watch_every_part_by_itself_and_name_each_call(exercised, tmp_path):
    names = [line for part in PARTS for line in exercised("--watched", "--repeats", "0", "--only", part).splitlines()]
    every = exercised("--watched", "--repeats", "0").splitlines()
    assert {name for name in names if "same results" not in name} == set(every[:-1])
    assert len(set(every)) == len(every) == 43
    stages = [stage.name for stages in gpu.rounds("9.0", tmp_path / "lines") for stage in stages]
    assert {f"{tool} of {part}" for tool in ("racecheck", "initcheck") for part in PARTS} <= set(stages)


def test_watched_products_equal_torchs_own_which_come_back(monkeypatch):
    monkeypatch.setattr(exercise, "DEVICE", "cpu")
    a, b, bias, onto = (torch.randn(s, dtype=torch.float64) for s in ((3, 4, 5), (3, 5, 2), (2,), (3, 4, 2)))

    def products():
        into = torch.empty(3, 4, 2, dtype=torch.float64)
        torch.bmm(a, b, out=into)
        return [torch.bmm(a, b), into, onto.clone().baddbmm_(a, b), torch.addmm(bias, a[0], b[0])]

    before = products()
    with exercise.products_without_cublas():
        watched = products()
    for one, other, after in zip(before, watched, products(), strict=True):
        torch.testing.assert_close(one, other)
        assert torch.equal(one, after)


def test_a_grid_that_takes_longer_than_its_stage_still_tells_what_was_done(monkeypatch, tmp_path):
    monkeypatch.setenv(SECONDS, "0")
    row = grids.grid("epidemic", tmp_path)
    assert not row["finished"]
    assert row["seconds"] < 60
    assert row["runs"] == 0
    with pytest.raises(SystemExit, match="the grid of epidemic left no runs to compare"):
        grids.comparison("epidemic", tmp_path)


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
        (python("", imports=("json", "no_such_package")), "skipped: no_such_package cannot be imported"),
    ],
    ids=["passes", "fails", "hangs", "lacks a program", "lacks a package"],
)
def test_a_stage_ends_in_one_of_five_ways(stage, status):
    done, _ = gpu.run(stage)
    assert done.status == status
    assert done.seconds < 30


def test_results_of_other_stages_survive_one_that_fails_and_one_that_hangs(monkeypatch, tmp_path, capsys):
    def rounds(capability, lines, built):
        assert not built
        row = json.dumps({"group": "GRU training", "ratio": 4.0, "ratio_chosen": 0.9})
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
    assert gpu.main([]) == 1
    results = json.loads((tmp_path / "nvidia-test-gpu.json").read_text())
    assert {stage["name"]: stage["status"] for stage in results["stages"]} == {
        "build": "passed",
        "fails": "failed",
        "hangs": "out of time",
        "measures": "passed",
    }
    slowest = "the slowest case, as the selector has it"
    assert results["table"] == [
        {"what": "GRU training", "ratio": 4.0, "cases": 1, "asked": 1.3, "aim": 2.0},
        {"what": slowest, "ratio": 0.9, "cases": 1, "asked": 1.0, "aim": 1.0},
    ]
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
