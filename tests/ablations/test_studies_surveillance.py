"""Claims on the surveillance study: whole seasons are held out, leaks are what they say, bad data are refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from ablations.data import series
from ablations.design import DataError, one_factor_at_a_time
from ablations.studies.surveillance import STUDY, SurveillanceTask

CONDITIONS = one_factor_at_a_time(STUDY, {f.name: [x.name for x in f.levels] for f in STUDY.factors})


def settings(**chosen):
    return STUDY.settings("smoke", STUDY.baseline) | chosen


def task(seed=0, **chosen):
    return SurveillanceTask(settings(**chosen), seed)


def file_of_the_simulated(folder, change=lambda table: table):
    data = series.load("simulated")
    columns = [data.dates.strftime("%Y-%m-%d"), range(len(data.dates))]
    rows = [(day, data.groups[g], data.values[g, i]) for g in range(4) for day, i in zip(*columns, strict=True)]
    change(pd.DataFrame(rows, columns=["day", "region", "share"])).to_csv(folder / "flu.csv", index=False)
    return {"data": str(folder / "flu.csv"), "date": "day", "value": "share", "group": "region"}


def test_the_last_whole_seasons_are_held_out_with_all_their_groups():
    drawn = task()
    seasons = series.cut(series.load("simulated"), lead=52)
    assert [len(part) // 4 for part in (drawn.train, drawn.validation, drawn.test)] == [len(seasons.names) - 4, 2, 2]
    np.testing.assert_array_equal(drawn.test.truth[-1], seasons.values[-1, -1])
    np.testing.assert_array_equal(drawn.test.truth[0], seasons.values[-2, 0])


def test_training_sees_nothing_of_the_held_out_seasons(tmp_path):
    named = file_of_the_simulated(tmp_path)
    before = task(**named)
    held_out = series.load("simulated").dates[-4 * 52]
    changed = lambda table: table.assign(share=table["share"].where(table["day"] < f"{held_out:%Y-%m-%d}", 0.3))  # noqa: E731
    after = task(**file_of_the_simulated(tmp_path, changed))
    assert not np.array_equal(before.validation.truth, after.validation.truth)
    assert torch.equal(before.train_inputs, after.train_inputs)
    assert torch.equal(before.train_targets, after.train_targets)


def test_a_file_gives_what_the_named_data_give(tmp_path):
    file, named = task(**file_of_the_simulated(tmp_path)), task()
    torch.testing.assert_close(file.train_inputs, named.train_inputs, rtol=1e-5, atol=1e-5)


def test_the_data_version_is_that_of_the_content(tmp_path):
    named = settings(**file_of_the_simulated(tmp_path))
    first = SurveillanceTask.data_version(named)
    file_of_the_simulated(tmp_path, lambda table: table.assign(share=2 * table["share"]))
    assert SurveillanceTask.data_version(named) != first
    file_of_the_simulated(tmp_path)
    assert SurveillanceTask.data_version(named) == first


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_every_condition_trains_on_its_data(condition):
    drawn = SurveillanceTask(STUDY.settings("smoke", condition), seed=1)
    loss = drawn.loss(drawn.model()(drawn.train_inputs[:5]), drawn.train_targets[:5])
    loss.backward()
    assert loss.isfinite()
    assert drawn.train_inputs.shape[1] == int(dict(condition.levels)["history"])
    np.testing.assert_array_equal(drawn.test.truth, task().test.truth)


@pytest.mark.parametrize(("leakage", "moved"), [("none", 0), ("windows", 8), ("scaling", 28)])
def test_leaks_change_as_many_training_seasons_as_they_say(leakage, moved):
    clean, leaky = task(), task(leakage=leakage)
    changed = (clean.train_inputs != leaky.train_inputs).any(dim=(1, 2))
    assert int(changed.reshape(len(clean.train), -1).any(dim=1).sum()) == moved
    assert clean.train_inputs.shape == leaky.train_inputs.shape


def test_forecasts_are_compared_with_the_last_season_and_the_flat_median_of_the_hubs():
    drawn = task()
    responses, arrays = drawn.evaluate(torch.no_grad()(drawn.model()))
    for name in ("persistence", "log_linear", "log_quadratic", "seasonal_naive", "flat_median", "arima", "ets"):
        assert np.isfinite(responses[f"{name}_error"]), name
    assert responses["flat_median_error"] == pytest.approx(responses["persistence_error"])
    assert arrays["wis_by_ahead_flat_median"].shape == (4,)
    assert arrays["before_peak"].tolist() == list(range(-8, 0))
    assert len(arrays["tested"]) == 2
    assert arrays["step"] == "week"
    assert len(arrays["epidemic"]) == len(arrays["truth"])


def test_every_run_keeps_what_was_repaired_in_its_data(tmp_path):
    gap = file_of_the_simulated(tmp_path, lambda table: table[table["day"] != "2003-02-03"])
    drawn = task(**gap)
    _, arrays = drawn.evaluate(torch.no_grad()(drawn.model()))
    filled, left_out = arrays["repaired"].tolist()
    assert "missing values (4, the first of 2003-02-03) filled by interpolation" in filled
    assert left_out.startswith("seasons from 2012-07-02 are left out")
    with pytest.warns(UserWarning, match="filled|left out") as told:
        SurveillanceTask.data_version(drawn.settings)
    assert [str(warning.message) for warning in told] == [filled, left_out]


def test_peaks_leave_room_for_history_and_horizon():
    drawn = task()
    for part in (drawn.train, drawn.validation, drawn.test):
        origins = drawn.origins(part)
        assert origins.min() >= drawn.longest_history - 1
        assert origins.max() + 4 < part.truth.shape[1]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"test_seasons": 0}, "2 for validation and 0 for tests, at least 1 each"),
        ({"test_seasons": 10}, "10 for tests, at least 1 each, and leave one"),
        ({"data": "boarding-school"}, "hold 0 whole seasons"),
    ],
)
def test_data_that_cannot_be_split_are_refused(chosen, message):
    with pytest.raises(DataError, match=message):
        task(**chosen)


def test_a_group_without_a_case_in_a_season_is_refused(tmp_path):
    last = series.load("simulated").dates[-110]
    nothing = lambda table: table.assign(  # noqa: E731
        share=table["share"].where((table["region"] != "region 3") | (table["day"] < f"{last:%Y-%m-%d}"), 0)
    )
    with pytest.raises(DataError, match="group region 3 is 0 for a whole season"):
        task(**file_of_the_simulated(tmp_path, nothing))
