"""The README's speed table is the committed result, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from rows import ABOUT, ROW, row, written

from bench import readme, record
from bench.results import ResultError, Results, read


def test_the_readme_s_table_is_that_of_the_committed_results() -> None:
    text = (readme.ROOT / "README.md").read_text()
    assert readme.BEGIN + readme.published() + readme.END in text


def test_every_committed_result_has_its_table_beside_it() -> None:
    for path in readme.RESULTS.glob("cpu-*.json"):
        results = read(path)
        assert path.with_suffix(".txt").read_text().splitlines()[0] in results.title
        assert results.about["machine"]


def test_the_section_has_a_column_per_mode_and_result_and_names_every_loss() -> None:
    train = [row("B1-C1-O8-S8-K3", 2.0, 2.0), row("B1-C2-O8-S8-K3", 0.5, 0.5, verdict="slower")]
    infer = row("B1-C1-O8-S8-K3", 3.0, 3.0, group="conv-infer")
    about = {**ABOUT, "date": "2026-11-24"}
    two, one = Results([*train, infer], about), Results(train[:1], {**about, "threads": "1"})
    lines = readme.section([("two", two), ("one", one)]).splitlines()
    headings = "training, 2 threads | inference, 2 threads | training, 1 thread | inference, 1 thread"
    assert lines[0] == f"| torch.nn's time / ours, float32 | {headings} |"
    assert "| convolution, ReLU, 2 x 2 max pooling, 2 shapes | 1.00 (0.50, 2.00) | 3.0 | 2.0 |  |" in lines
    below = " ".join(lines)
    assert "slower: conv-train-B1-C2-O8-S8-K3." in below
    assert "[2 threads](bench/results/two.txt) and [1 thread](bench/results/one.txt)" in below


def test_the_table_of_a_gpu_averages_its_measurements_and_leaves_out_those_that_failed() -> None:
    gpu = {"name": "NVIDIA Test", "torch": "2.13", "cuda": "13.0", "cudnn": "91900"}
    ratios = {"ratio": 8.0, "ratio_chosen": 4.0, "ratio_eager": 1.0}
    measurements = [
        {"group": "GRU training", **ratios},
        {"group": "GRU training", **ratios, "ratio_chosen": 1.0},
        {"group": "GRU training", "error": "out of memory"},
        {"grid": "epidemic", "seconds": 20.4, "runs": 1008},
    ]
    text = readme.gpu_section("nvidia-test", {"gpu": gpu, "date": "2026-11-26T06", "measurements": measurements})
    cells = "2 cases | 2.00 (1.00, 4.00) | 8.00 (8.00, 8.00) | 1.00 (1.00, 1.00) |"
    assert f"| GRU, bfloat16 and TF32, 256 to 1024 units, {cells}" in text.splitlines()
    assert "1,008 small runs of the epidemic study took 20 s." in " ".join(text.split())


def test_publishing_keeps_what_readers_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    measured = written(tmp_path / "measured.json", [ROW])
    record.publish(measured, "ours")
    assert read(tmp_path / "ours.json").rows[0].ratio == ROW.ratio
    assert "B1-C3" in (tmp_path / "ours.txt").read_text()


def test_without_results_there_is_nothing_to_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    with pytest.raises(ResultError, match="`python -m bench record` measures some"):
        readme.published()
