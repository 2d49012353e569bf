"""The printed table."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from rows import ROW

from bench.protocol import Race
from bench.table import WIDTH, remarks, render
from bench.workers import Measurement


def lines(*rows: object) -> list[list[str]]:
    return [line.split() for line in render(list(rows), "title", color=False).splitlines() if line]  # type: ignore[arg-type]


def test_each_group_shows_its_rows_losses_too_and_its_mean() -> None:
    logs = tuple(-log for log in ROW.logs)
    loss = replace(ROW, shape="B64-C1", ratio=0.25, low=0.24, high=0.26, verdict="slower", logs=logs)
    other = replace(ROW, group="recurrent-GRU-train", shape="T30")
    printed = lines(ROW, other, loss)
    assert [line[0] for line in printed[3:11]] == [
        *("conv-train", "B1-C3", "B64-C1", "geometric"),
        *("recurrent-GRU-train", "T30", "geometric", "ratio:"),
    ]
    assert printed[5] == ["B64-C1", "0.25", "0.24", "-", "0.26", "±2.0%", "100%", "slower", "0.5", "25%a"]
    assert printed[6] == ["geometric", "mean", "1.00", "1.00", "-", "1.00"]


def test_forward_and_backward_stand_beside_the_step_and_peers_below_torch() -> None:
    parts = [replace(ROW, part="forward", ratio=5.0), replace(ROW, part="backward", ratio=3.0)]
    peer = replace(ROW, other="jax", ratio=1.5, logs=(math.log(1.5),) * 3)
    printed = lines(ROW, *parts, peer)
    assert printed[4][:7] == ["B1-C3", "4.00", "3.90", "-", "4.10", "5.00", "3.00"]
    assert printed[5][:3] == ["vs", "jax", "1.50"]
    assert printed[6] == ["geometric", "mean", "4.00", "3.88", "-", "4.13"]


def test_a_table_holds_no_terminal_codes_and_fits_100_columns_uncut() -> None:
    wide = replace(ROW, shape="B64-C64-O64-S16-K7-depthwise", ratio=123.45, low=101.2, high=145.1, milliseconds=1234)
    wide = replace(wide, group="recurrent-LSTM-train", shape="T28-B64-I28-H128-bidirectional", band=1.148)
    parts = [replace(wide, part=part) for part in ("step", "forward", "backward")]
    text = render([replace(row, ratio=13.45, low=11.11, high=14.51) for row in parts], "title", color=False)
    assert "\x1b" not in text
    assert "…" not in text
    assert "T28-B64-I28-H128-bidirectional" in text
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    longer = replace(parts[0], shape="B1024-C1024-O1024-S224-K11-depthwise-nhwc")
    assert "…" not in render([longer, *(replace(part, shape=longer.shape) for part in parts[1:])], "title", color=False)


def test_slow_starts_and_absent_peers_are_remarked_upon_once() -> None:
    race = Race({"recurve": np.ones((3, 1))}, {}, {"recurve": 0.1, "torch.compile": 41.0})
    measured = {case: [Measurement({"wall": race}, None, {"jax": "not installed"})] for case in ("a", "b")}
    assert list(remarks(measured)) == [
        "apart from these times: torch.compile took up to 41.0 s for its first call (a)",
        "left out: jax in 2 cases: not installed",
    ]
