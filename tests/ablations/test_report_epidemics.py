"""Claims on the figures of epidemics: each shows the numbers of its records, and none is drawn from nothing."""

import numpy as np
import pandas as pd
import pytest

from ablations.report import figures
from ablations.report.evidence import Evidence
from ablations.report.figures import epidemics
from ablations.report.figures.drawings import STUDY_FIGURES
from ablations.studies.epidemic import STUDY

SEEDS = 3


def arrays(seed):
    course = np.linspace(2, 1, 28)
    day = np.arange(60)
    infectious = np.exp(-(((day - 30) / 9) ** 2)) / 4
    return {
        "before_peak": np.arange(-21, 0),
        "peak_day_error_by_origin": np.linspace(9, 1, 21) + seed,
        "peak_day_error_by_origin_oracle": np.zeros(21),
        "peak_height_error_by_origin": np.linspace(0.9, 0.1, 21),
        "peak_height_error_by_origin_oracle": np.zeros(21),
        "wis_by_ahead": course * (1 + seed),
        "wis_by_ahead_persistence": 2 * course * (1 + seed),
        "wis_by_ahead_oracle": 0.2 * course * (1 + seed),
        "nominal_coverage": np.array([0.95, 0.5]),
        "coverage": np.array([0.9, 0.4]),
        "day": day,
        "susceptible": (0.9 - infectious)[None],
        "infectious": infectious[None],
        "recovered": np.full((1, 60), 0.08),
        "dead": np.full((1, 60), 0.02),
    }


@pytest.fixture
def evidence():
    baseline = dict(STUDY.baseline.levels)
    rows = [
        baseline | changes | {"key": f"{name} {seed}", "seed": seed, "status": "done", "error": error + 0.01 * seed}
        for name, changes, error in (
            ("baseline", {}, 0.10),
            ("short", {"history": "7"}, 0.12),
            ("noisy", {"noise": "0.3"}, 0.20),
            ("deep", {"depth": "2"}, 0.5),
        )
        for seed in range(SEEDS)
    ]
    runs = pd.DataFrame(rows)
    return Evidence(
        "epidemic",
        "quick",
        STUDY.declaration(),
        runs,
        pd.DataFrame(),
        pd.DataFrame(),
        lambda key, names: arrays(int(key[-1])),
        {},
    )


def test_errors_by_origin_are_those_of_the_records_with_days_counted_back_from_the_peak(evidence):
    table = figures.origin_table(evidence).set_index(["of", "series", "seed", "days before the peak"])["y"]
    assert table["time", epidemics.NETWORK, 2, 21] == 11
    assert table["time", epidemics.NETWORK, 0, 1] == 1
    assert table["height", epidemics.NETWORK, 0, 21] == 90
    assert (table.xs("oracle: true rates", level="series") == 0).all()


def test_scores_by_horizon_are_over_those_of_persistence_of_the_same_seed(evidence):
    table = figures.horizon_table(evidence)
    np.testing.assert_allclose(table.loc[table["series"] == epidemics.NETWORK, "y"], 0.5)
    np.testing.assert_allclose(table.loc[table["series"] == "oracle: true rates", "y"], 0.1)
    assert set(table["days ahead"]) == set(range(1, 29))


def test_history_by_noise_holds_the_runs_that_change_these_two_alone(evidence):
    table = figures.history_table(evidence)
    assert len(table) == 3 * SEEDS
    assert set(zip(table["history"], table["noise"], strict=True)) == {(14, 0.1), (7, 0.1), (14, 0.3)}
    assert table["y"].max() == pytest.approx(22)  # per cent


def test_every_figure_of_the_study_is_drawn_and_its_code_gives_the_same(evidence):
    for name in set(STUDY.figures) - {"forecasts"}:
        drawing = STUDY_FIGURES[name](evidence)
        assert drawing.name == f"epidemic_{name}"
        again = eval(drawing.code, {"figures": figures, "evidence": evidence})
        for axes, same in zip(drawing.figure.axes, again.axes, strict=True):
            assert axes.get_ylabel()
            for one, other in zip(axes.lines, same.lines, strict=True):
                np.testing.assert_array_equal(one.get_ydata(), other.get_ydata())


def test_the_coverage_of_honest_intervals_would_lie_on_the_diagonal(evidence):
    (axes,) = figures.coverage(figures.coverage_table(evidence), evidence.declaration).axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[50, 40], [95, 90]])


def test_the_peak_is_marked_where_most_are_infectious(evidence):
    (axes,) = figures.compartments(figures.compartment_table(evidence), evidence.declaration).axes
    marked = next(line for line in axes.lines if len(line.get_xdata()) == 1)
    assert marked.get_xdata()[0] == 30


def test_nothing_is_drawn_where_the_records_hold_nothing(evidence):
    def holding(runs):
        nothing = pd.DataFrame()
        return Evidence("epidemic", "quick", STUDY.declaration(), runs, nothing, nothing, lambda key, names: {}, {})

    empty, bare = holding(evidence.runs[:0]), holding(evidence.runs[:3])
    for name in set(STUDY.figures) - {"forecasts"}:
        assert STUDY_FIGURES[name](bare) is None
        assert name == "history_by_noise" or STUDY_FIGURES[name](empty) is None
