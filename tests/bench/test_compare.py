"""`python -m bench compare` and `show`, on results that are made up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from rows import ABOUT, row, written
from scipy import stats

from bench.__main__ import main
from bench.compare import changes
from bench.results import Results, read


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return written(tmp_path / "a.json", [row("S1", 2.0, 2.02, 1.98), row("S2", 3.0, 3.03, 2.97)])


def test_what_is_written_reads_back(before: Path) -> None:
    found = read(before)
    assert found.rows[0] == row("S1", 2.0, 2.02, 1.98)
    assert found.title == "recurve 0.1.0, torch 2.13.0, float32, 2 threads, a machine, 2 cores, 2026-11-24"


def test_a_change_is_the_ratio_of_ratios_with_welch_s_interval() -> None:
    a, b = (Results([row("S1", *ratios)], ABOUT) for ratios in ((2.0, 2.2, 1.9), (1.0, 1.2, 1.1, 1.3)))
    (change,) = changes(a, b)
    test = stats.ttest_ind(b.rows[0].logs, a.rows[0].logs, equal_var=False).confidence_interval()
    assert change.ratio == pytest.approx(math.exp(np.mean(b.rows[0].logs) - np.mean(a.rows[0].logs)))
    assert (change.low, change.high) == pytest.approx((math.exp(test.low), math.exp(test.high)))


def test_a_result_against_itself_is_the_same_and_passes(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(before), str(before), "--fail-below", "0.95"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" same ") == 2 + 1  # and once in the line below the table
    assert "geometric mean" in printed


def test_a_slowdown_of_10_percent_fails_and_is_named(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = written(tmp_path / "b.json", [row("S1", 1.8, 1.82, 1.78), row("S2", 3.0, 3.03, 2.97)])
    assert main(["compare", str(before), str(after), "--fail-below", "0.95"]) == 1
    assert "slower than allowed: conv-train-S1, 0.90 < 0.95" in capsys.readouterr().out
    assert main(["compare", str(before), str(after), "--fail-below", "0.85"]) == 0
    assert main(["compare", str(before), str(after)]) == 0


def test_a_slowdown_within_the_noise_does_not_fail(before: Path, tmp_path: Path) -> None:
    noisy = written(tmp_path / "b.json", [row("S1", 1.5, 2.2, 1.7), row("S2", 3.0, 3.03, 2.97)])
    assert main(["compare", str(before), str(noisy), "--fail-below", "0.95"]) == 0
    banded = written(tmp_path / "b.json", [row("S1", 1.8, 1.82, 1.78, band=1.3), row("S2", 3.0, 3.03, 2.97)])
    assert main(["compare", str(before), str(banded), "--fail-below", "0.95"]) == 0


def test_what_else_differs_is_said(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = written(tmp_path / "b.json", [row("S1", 2.0, 2.02, 1.98), row("S3", 1.0, 1.1, 1.05)], torch="2.14.0")
    assert main(["compare", str(before), str(after)]) == 0
    assert main(["compare", str(before), str(after), "--fail-below", "0.5"]) == 1  # for S2 may have become slower
    printed = capsys.readouterr().out
    assert "only in A: conv-train-S2" in printed
    assert "not in B, so that nothing is known of it: conv-train-S2" in printed
    assert "only in B: conv-train-S3" in printed
    assert "torch: 2.13.0 in A, 2.14.0 in B" in printed


@pytest.mark.parametrize("ratio", ["nan", "-1", "0", "95", "most"])
def test_a_gate_that_could_never_close_is_refused(ratio: str, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(before), str(before), f"--fail-below={ratio}"])
    assert f"{ratio!r} is no ratio above 0 and up to 1" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[]"])
def test_what_is_no_result_is_an_error_of_its_own(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    assert main(["show", str(tmp_path / "odd.json")]) == 2
    assert "odd.json: no result of `pytest --benchmark" in capsys.readouterr().err


def test_cases_of_unlike_numbers_of_processes_are_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "odd.json", [row("S1", 2.0, 2.02, 1.98), row("S3", 1.0, 1.1)])
    assert main(["show", str(tmp_path / "odd.json")]) == 2
    assert "unlike numbers of processes" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error_of_its_own(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    assert main(["show", str(before), "--out", str(tmp_path / "taken")]) == 2
    assert "taken cannot be made: File exists" in capsys.readouterr().err


def test_files_that_cannot_be_compared_are_an_error_of_their_own(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = written(tmp_path / "b.json", [row("S9", 1.0, 1.1)])
    assert main(["compare", str(before), str(other)]) == 2
    assert main(["compare", str(before), str(tmp_path / "none.json")]) == 2
    (tmp_path / "foreign.json").write_text('{"benchmarks": []}')
    assert main(["show", str(tmp_path / "foreign.json")]) == 2
    errors = capsys.readouterr().err
    assert "no case in common" in errors
    assert "none.json: no result of `pytest --benchmark --benchmark-json` (No such file" in errors
    assert "foreign.json: no result" in errors
