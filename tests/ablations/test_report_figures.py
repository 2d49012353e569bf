"""Claims of the figures: each draws a reader's own table, shows the numbers it says, and leaves the theme alone."""

import sys
from dataclasses import replace
from functools import partial
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.figure import Figure

from ablations.records import Records
from ablations.report import figures
from ablations.report.evidence import REFERENCES, gather
from ablations.report.figures import Drawing
from ablations.statistics import crossed_cells, effects, interactions, pareto_front


@pytest.fixture(scope="module")
def own():
    """A table that no study made: two crossed factors, an interaction of 0.1, a cost, learning times, timings."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(6):
        shift = rng.normal()
        for optimizer in ("adam", "sgd"):
            for width in (8, 16, 32):
                together = 0.1 * (optimizer == "sgd" and width == 32)
                score = 0.6 + 0.05 * shift + 0.01 * width / 8 - 0.05 * (optimizer == "sgd") + together
                levels = {"optimizer": optimizer, "width": width, "weights": width**2}
                rows.append({"seed": seed, "status": "done", **levels, "score": score + 0.002 * rng.normal()})
    frame = pd.DataFrame(rows)
    frame["epochs_to_target"] = np.where(frame["seed"] % 3 == 0, np.inf, frame["width"] / 8)
    frame["epochs_watched"] = 10
    frame["native_seconds"], frame["seconds"] = 2.0 + 0.01 * frame["seed"], 1.0
    return frame


@pytest.fixture(scope="module")
def declaration(own):
    return figures.declare(own, "score", {"optimizer": "adam", "width": 8}, costs=["weights"])


def test_every_reference_is_named_beside_the_levels_however_many_there_are(own, declaration):
    errors = {name: 0.5 + 0.02 * place for place, name in enumerate(REFERENCES)}
    (axes, *_) = figures.levels(own.assign(**errors), declaration).axes[-1:]
    named = " ".join(text.get_text() for text in axes.texts)
    assert all(name.replace(" extrapolation", "") in named for name in REFERENCES.values())


def test_every_figure_draws_a_table_of_ones_own(own, declaration):
    curves = own.merge(pd.DataFrame({"epoch": [1, 2, 3]}), how="cross").assign(validation_loss=lambda d: 1 / d["epoch"])
    drawn = [
        figures.forest(effects(own, declaration), declaration),
        figures.levels(own, declaration),
        figures.learning_curves(curves, declaration),
        figures.targets(own, declaration),
        figures.tradeoff(own, declaration, cost="weights"),
        figures.interaction_plot(own, declaration),
        figures.heat_map(own, declaration),
        figures.timing_ratios(figures.timing_table(own, declaration)),
        figures.shift_accuracy(own.assign(shift=1, accuracy=own["score"]), declaration),
    ]
    assert all(isinstance(figure, Figure) and figure.axes for figure in drawn)


def with_a_far_level(own: pd.DataFrame) -> pd.DataFrame:
    """Width 32 fails: 50 lower than all else."""
    return own.assign(score=own["score"].where(own["width"] != 32, own["score"] - 50))


def test_a_row_far_beyond_the_others_leaves_the_forest_by_an_arrow_and_keeps_its_numbers(own, declaration):
    found = effects(with_a_far_level(own), declaration)
    rows = pd.concat([found, *(found.assign(level=found["level"] + str(k)) for k in range(2))]).query("level != '321'")
    axes = figures.forest(rows.query("level != '320'"), declaration).axes[0]
    assert -1 < axes.get_xlim()[0] < axes.get_xlim()[1] < 1
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "<"] == [pytest.approx(axes.dataLim.x0)]
    assert any("50" in label.get_text() for label in axes.child_axes[0].get_yticklabels())


def test_a_forest_of_forty_levels_prints_on_one_page():
    rng = np.random.default_rng(0)
    rows = [
        {"seed": seed, "status": "done", "score": rng.normal(), **{f"factor {k}": "0" for k in range(14)}} | changed
        for seed in range(3)
        for changed in [{}, *({f"factor {k % 14}": str(1 + k // 14)} for k in range(40))]
    ]
    many = pd.DataFrame(rows)
    stated = figures.declare(many, "score", {f"factor {k}": "0" for k in range(14)})
    assert figures.forest(effects(many, stated), stated).get_size_inches()[1] < 10


def test_accuracies_beside_a_slow_level_are_told_apart_by_their_errors(own, declaration):
    curves = own.merge(pd.DataFrame({"epoch": [1, 2, 3]}), how="cross")
    error = 0.1 / curves["epoch"] + 0.001 * curves["seed"]
    curves = curves.assign(validation_accuracy=1 - error.where(curves["width"] != 32, 0.9))
    axes = figures.learning_curves(curves, declaration).axes[0]
    bottom, middle, top = axes.transAxes.inverted().transform(
        axes.transData.transform([(1, y) for y in (10, 90, 96.5)])
    )[:, 1]
    assert (top - middle) / (middle - bottom) == pytest.approx(np.log(10 / 3.5) / np.log(90 / 10))
    mean = 100 * (1 - np.exp(np.log(error[(curves["epoch"] == 3) & (curves["width"] == 8)]).mean()))
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(mean)


def test_accuracies_far_apart_have_an_axis_of_errors_that_ends_above_every_mean(own):
    stated = figures.declare(own, "score", {"optimizer": "adam", "width": 8}, unit="%", costs=["weights"])
    far = own.assign(score=own["score"].where(own["width"] != 32, 0.99 + 0.02 * (own["seed"] % 2 - 0.5)))
    axes = figures.tradeoff(far, stated, cost="weights").axes[0]
    middles = axes.transData.transform([(64, 100 - error) for error in (1, 10, 100)])[:, 1]
    assert np.diff(middles)[0] == pytest.approx(np.diff(middles)[1])
    assert 99 < axes.get_ylim()[1] < 100


def test_a_level_far_from_the_baseline_does_not_squeeze_the_others_and_is_named_with_its_mean(own, declaration):
    far = with_a_far_level(own)
    wide = far.assign(width=far["width"].astype(str) + far["optimizer"].map({"adam": "", "sgd": "s"}), optimizer="adam")
    declared = figures.declare(wide, "score", {"width": "8"})
    axes = figures.levels(wide[wide["width"] != "32s"], declared).axes[0]
    assert axes.get_ylim()[0] > -2
    assert any("49" in text.get_text() for text in axes.texts)


def test_a_table_that_lacks_a_column_is_refused_with_what_it_has(own):
    with pytest.raises(ValueError, match=r"lacks the columns loss, depth; it has seed, status, optimizer"):
        figures.declare(own, "loss", {"depth": 1})


def test_an_unknown_response_is_refused_with_those_there_are(own, declaration):
    with pytest.raises(ValueError, match=r"'scor' is not a response.*allowed: score, weights"):
        figures.levels(own, declaration, response="scor")


def test_interaction_plot_shows_the_paired_differences_and_the_sum_of_both(own, declaration):
    axes = figures.interaction_plot(own, declaration).axes[0]
    cells = crossed_cells(own, declaration, "optimizer", "width", "score").set_index(["level", "other_level"])
    solid = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    dashed = [line.get_ydata() for line in axes.lines if line.get_linestyle() == "--"]
    assert solid["32"] == pytest.approx(cells.xs("32", level="other_level")["mean"].to_numpy())
    assert dashed[-1] == pytest.approx(cells.xs("32", level="other_level")["expected"].to_numpy())
    assert solid["32"][1] - dashed[-1][1] == pytest.approx(0.1, abs=0.01)


def test_levels_tried_with_the_other_factors_baseline_alone_are_no_part_of_an_interaction(own):
    lone = own[(own["optimizer"] == "adam") & (own["width"] == 32)].assign(width=64)
    runs = pd.concat([own, lone], ignore_index=True)
    declaration = figures.declare(runs, "score", {"optimizer": "adam", "width": 8})
    (axes,) = figures.interaction_plot(runs, declaration, [("width", "optimizer")]).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["8", "16", "32"]


def test_a_figure_of_thousands_of_dots_is_the_same_bytes_whatever_the_order_of_its_table(tmp_path):
    rng, saved = np.random.default_rng(0), []
    runs = pd.DataFrame({"seed": np.arange(1000).repeat(2), "width": [8, 16] * 1000, "score": rng.normal(size=2000)})
    declaration = figures.declare(runs.assign(status="done"), "score", {"width": 8})
    for k, table in enumerate((runs, runs.sample(frac=1, random_state=1))):
        draw = partial(figures.levels, table.assign(status="done", width=table["width"].astype(str)), declaration)
        (tmp_path / str(k)).mkdir()
        paths = Drawing("dots", "", "", "", draw, "").save(tmp_path / str(k))
        saved.append([path.read_bytes() for path in paths])
    assert saved[0] == saved[1]


def test_interactions_of_one_factor_at_a_time_cannot_be_drawn(own, declaration):
    alone = own[(own["optimizer"] == "adam") | (own["width"] == 8)]
    with pytest.raises(ValueError, match="no two factors were crossed"):
        figures.interaction_plot(alone, declaration)


def test_pareto_front_is_drawn_through_the_conditions_that_nothing_beats(own, declaration):
    axes = figures.tradeoff(own, declaration, cost="weights").axes[0]
    front = next(line for line in axes.lines if line.get_linestyle() == "--")
    means = own.groupby(["optimizer", "width"])[["weights", "score"]].mean()
    best = pareto_front(means, "weights", "score")
    assert front.get_xdata() == pytest.approx(best["weights"].to_numpy())
    assert front.get_ydata() == pytest.approx(best["score"].to_numpy())


def test_timing_ratios_are_those_of_the_same_run(own, declaration):
    table = figures.timing_table(own, declaration)
    baseline = table[table["label"] == "baseline"].iloc[0]
    exact = np.exp(-np.log(2.0 + 0.01 * np.arange(6)).mean())
    assert baseline["ratio"] == pytest.approx(exact)
    assert baseline["low"] < exact < baseline["high"]
    assert figures.timing_table(own.drop(columns="native_seconds"), declaration).empty


def test_target_curves_end_below_one_hundred_per_cent_where_runs_missed(own, declaration):
    axes = figures.targets(own, declaration).axes[0]
    ends = [line.get_ydata()[-1] for line in axes.lines]
    assert ends == pytest.approx([100 * 4 / 6] * 2)


def test_profiles_need_many_settings(own, declaration):
    with pytest.raises(ValueError, match="3 conditions are too few"):
        figures.profiles(own, declaration, "optimizer")


def test_drawing_leaves_the_callers_theme_alone(own, declaration):
    before = dict(mpl.rcParams)
    figures.levels(own, declaration)
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    records = Records(tmp_path_factory.mktemp("crossed"))
    synthetic.write_crossed(records, synthetic.EPIDEMIC, ["cell", "history", "depth"], seeds=4)
    return gather(records, "epidemic", "quick")


def test_a_factorial_report_shows_interactions_heat_maps_and_profiles(crossed):
    names = {drawing.name for drawing in figures.draw(crossed)}
    assert {"epidemic_interactions", "epidemic_heat_map", "epidemic_profiles"} <= names
    strongest = interactions(crossed.runs, crossed.declaration, "error").sort_values("mean", key=abs).iloc[-1]
    assert (strongest["level"], strongest["other_level"]) == ("lstm", "2")


def test_a_study_supplies_a_figure_of_its_own(crossed, monkeypatch):
    module = ModuleType("figures_of_mine")
    module.mine = lambda evidence: Drawing("epidemic_mine", "Mine", "A caption.", "A figure.", Figure, "mine(evidence)")
    module.nothing = lambda evidence: None
    monkeypatch.setitem(sys.modules, "figures_of_mine", module)
    named = crossed.declaration | {"figures": ["figures_of_mine:mine", "figures_of_mine:nothing"]}
    drawings = figures.draw(replace(crossed, declaration=named))
    assert drawings[-1].name == "epidemic_mine"
    with pytest.raises(ValueError, match=r"no figure 'forecast'; a study may name .*forecasts"):
        figures.draw(replace(crossed, declaration=crossed.declaration | {"figures": ["forecast"]}))
