"""The printed table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.table import Row, geometric_mean, render

ROW = Row("conv-train", "B1-C3", 4.0, 3.9, 4.1, 1.0, 1.02, "faster", 0.5, 20.0, 0.25, 100, 2)


def test_the_geometric_mean_of_twice_and_half_is_one() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1)


def test_each_group_shows_its_rows_losses_too_and_its_mean() -> None:
    loss = replace(ROW, shape="B64-C1", ratio=0.25, low=0.24, high=0.26, verdict="slower")
    other = replace(ROW, group="recurrent-GRU-train", shape="T30")
    lines = [line.split() for line in render([ROW, other, loss], "title", color=False).splitlines() if line]
    words = [line[0] for line in lines[3:]]
    assert words == ["conv-train", "B1-C3", "B64-C1", "geometric", "recurrent-GRU-train", "T30", "geometric"]
    assert lines[5] == ["B64-C1", "0.25", "0.24", "-", "0.26", "±2.0%", "100%", "slower", "0.5", "20", "25%"]
    assert lines[6] == ["geometric", "mean", "1.00"]


def test_a_table_for_a_file_holds_no_terminal_codes_and_fits_its_width() -> None:
    text = render([replace(ROW, shape="T28-B64-I28-H128-L2-bidirectional", ratio=123.45)], "title", color=False)
    assert "\x1b" not in text
    assert "T28-B64-I28-H128-L2-bidirectional" in text
    assert max(map(len, text.splitlines())) <= 120
