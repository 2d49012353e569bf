"""Figures and the page: what they hold, and scaling laws that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rows import ABOUT, ROW

from bench.cases import MODES
from bench.figures import forest, threads, write_page
from bench.results import Results, Row
from bench.scaling import Law, laws


def gru(shape: str, milliseconds: float, **changed: object) -> Row:
    known = replace(ROW, group="recurrent-GRU-train", shape=shape, milliseconds=milliseconds)
    return replace(known, **changed)  # type: ignore[arg-type]


SWEEP = [gru(f"T{t}-B32-I3-H32", 0.1 * t, other_milliseconds=0.01 * t**2) for t in (8, 16, 32, 64)]
ENSEMBLES = [
    gru(f"E{e}-T30-B32-I3-H32", 1.0, group="ensemble-GRU-train", held_megabytes=0.5 * e) for e in (1, 4, 16, 64)
]


def test_exponents_of_known_power_laws_are_found() -> None:
    found = {(law.axis, law.unit): law for law in laws([*SWEEP, *ENSEMBLES])}
    assert found["steps", "ms"].slope == pytest.approx(1)
    assert found["steps", "ms"].native_slope == pytest.approx(2)
    assert found["models", "MB"].slope == pytest.approx(1)
    assert found["models", "ms"].slope == pytest.approx(0, abs=1e-9)


def test_fewer_than_four_sizes_or_two_differences_make_no_law() -> None:
    mixed = [gru("T8-B32-I3-H32", 1), gru("T16-B16-I3-H32", 2), gru("T32-B8-I3-H32", 3), gru("T64-B4-I3-H32", 4)]
    assert laws(mixed) == []
    assert laws(SWEEP[:3]) == []


def test_results_of_one_and_two_threads_make_the_law_of_threads() -> None:
    shapes = ("T8-B32-I3-H32", "T9-B1-I3-H32")
    rows = [gru(shape, 2.0 / threads, threads=threads) for shape in shapes for threads in (1, 2)]
    (law,) = laws([*rows, gru("T7-B32-I3-H32", 50.0, threads=1)])
    assert (law.axis, law.sizes) == ("threads", (1, 2))
    assert law.slope == pytest.approx(-1)


def test_sweeps_of_one_group_are_told_apart_by_what_stays_fixed() -> None:
    wide = [gru(f"T{t}-B32-I3-H64", 0.2 * t) for t in (8, 16, 32, 64)]
    assert [law.fixed for law in laws([*SWEEP, *wide]) if law.unit == "ms"] == ["B32-I3-H32", "B32-I3-H64"]


def test_gains_by_threads_are_ratios_of_times() -> None:
    law = Law("threads", "ms", "conv-train", (1, 2), (3.0, 2.0), (4.0, 4.0))
    lines = [line.get_xdata() for line in threads([law]).axes[0].lines]
    assert {float(x[0]) for x in lines if len(x) == 1} == {1.5, 1.0}


def test_a_forest_names_each_group_once_and_many_cases_stand_in_two_columns() -> None:
    rows = [gru(f"T{t}-B32-I3-H32", 1.0, group=f"recurrent-GRU-{mode}") for t in range(8, 38) for mode in MODES]
    columns = forest(rows).axes
    labels = [label.get_text() for axes in columns for label in axes.get_yticklabels()]
    assert [label for label in labels if label.startswith("recurrent")] == [f"recurrent-GRU-{mode}" for mode in MODES]
    assert len(columns) == 2
    assert len(labels) == len(rows) + len(MODES)


def test_the_page_holds_every_figure_and_every_comparison(tmp_path: Path) -> None:
    rows = [
        *SWEEP,
        *ENSEMBLES,
        replace(ROW, shape="B1-C3-O32-S32-K3", limit_share=None),
        replace(SWEEP[0], other="jax"),
    ]
    rows += [replace(SWEEP[0], part=part) for part in ("forward", "backward")]
    alone = Results([replace(row, threads=1) for row in rows], ABOUT)
    page = write_page([Results(rows, {**ABOUT, "date": "2026-11-24"}), alone], tmp_path).read_text()
    names = {"forest", "roofline", "heat_map", "scaling", "threads"}
    assert {path.stem for path in tmp_path.glob("*.png")} == names == {path.stem for path in tmp_path.glob("*.svg")}
    assert page.count("<figure>") == len(names)
    assert page.count("<tr>") == 1 + len(rows)
    assert "2026-11-24" in page
