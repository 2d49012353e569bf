"""Claims on the epidemic study: data leak only where asked, measures are exact, conditions are what they say."""

import numpy as np
import pytest
import torch

from ablations.data import sird
from ablations.design import DataError, one_factor_at_a_time
from ablations.forecasting import baselines
from ablations.forecasting.scores import LEVELS, MEDIAN, NOMINAL, coverage
from ablations.forecasting.task import Scaler
from ablations.models import Quantiles
from ablations.records import Configuration
from ablations.studies import epidemic
from ablations.studies.epidemic import STUDY, UNSEEN_R0, EpidemicTask, simulate
from ablations.training import Ensemble, learn

CONDITIONS = one_factor_at_a_time(STUDY, {f.name: [x.name for x in f.levels] for f in STUDY.factors})
CHANGES_REPORTS = {"noise", "observed", "weekday"}
CHANGES_EPIDEMICS = {"process", "least_reported"}


def settings(**chosen):
    return STUDY.settings("smoke", STUDY.baseline) | chosen


def task(seed=0, **chosen):
    return EpidemicTask(settings(**chosen), seed)


def changed(condition):
    return {name for name, level in condition.levels if level != dict(STUDY.baseline.levels)[name]}


def certain(task):
    """The targets of the test epidemics as quantiles without spread: a perfect forecast."""
    return task.targets(task.test, task.origins(task.test))[..., None].expand(-1, -1, 23)


def forecaster_of(change):
    """A predictor that is certain of the same change on every day."""

    def predict(inputs):
        days, sides, steps = torch.full((len(inputs), 28), change), (len(inputs), 2, 28), (len(inputs), 2, 11)
        return Quantiles(days, torch.zeros(sides), torch.zeros(steps))

    return predict


def measured(task, outputs):
    return task.measure(task.shares(outputs, task.test, task.origins(task.test)), task.test)


@pytest.mark.parametrize("process", ["map", "ode", "chain"])
def test_every_forecast_around_a_peak_has_the_longest_history_and_its_horizon(process):
    rates, courses = simulate(settings(process=process), 60, (1.5, 3), np.random.default_rng(0))
    peak_day = courses.infectious.argmax(axis=1)
    assert len(rates) == len(peak_day) == 60
    assert peak_day.min() - 14 - 7 >= EpidemicTask.longest_history - 1
    assert peak_day.max() + 14 + 28 < epidemic.DAYS
    np.testing.assert_allclose(sum(courses), 1, atol=1e-9)


def test_fast_epidemics_are_not_left_out():
    rates, _ = simulate(settings(), 500, (1.5, 4), np.random.default_rng(0))
    r0 = rates.beta / rates.mu
    assert np.quantile(r0, [0.1, 0.9]) == pytest.approx([1.8, 3.75], abs=0.15)


def test_small_populations_run_event_by_event():
    _, courses = simulate(settings(process="gillespie", population=2000), 3, (2, 3), np.random.default_rng(0))
    np.testing.assert_allclose(2000 * courses.infectious, np.round(2000 * courses.infectious), atol=1e-6)
    assert (1 - courses.susceptible[:, -1] >= epidemic.OUTBREAK).all()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"process": "sir"}, "process 'sir' is unknown; allowed are map, ode, chain, gillespie"),
        ({"process": "chain", "population": 60}, r"only \d+ of \d+ epidemics .* Use fewer epidemics or a larger"),
    ],
)
def test_epidemics_that_cannot_be_simulated_say_why(chosen, message):
    with pytest.raises(DataError, match=message):
        simulate(settings(**chosen), 40, (1.5, 3), np.random.default_rng(0))


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_same_seed_gives_the_same_epidemics_in_every_condition(condition):
    baseline, other = (EpidemicTask(STUDY.settings("smoke", c), seed=3) for c in (STUDY.baseline, condition))
    if changed(condition) & CHANGES_EPIDEMICS:
        assert not np.array_equal(baseline.test.truth, other.test.truth)
        return
    for part in ("train", "validation", "test"):
        one, two = getattr(baseline, part), getattr(other, part)
        np.testing.assert_array_equal(one.truth, two.truth)
        if not changed(condition) & CHANGES_REPORTS:
            np.testing.assert_array_equal(one.reported, two.reported)
    if not changed(condition) & {*CHANGES_REPORTS, "leakage", "horizon"}:
        assert torch.equal(baseline.train_targets, other.train_targets)
        shared = min(baseline.train_inputs.shape[1], other.train_inputs.shape[1])
        assert torch.equal(baseline.train_inputs[:, -shared:], other.train_inputs[:, -shared:])


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_every_condition_trains_and_is_what_it_says(condition):
    chosen = dict(condition.levels)
    task = EpidemicTask(STUDY.settings("smoke", condition), seed=0)
    model = task.model()
    loss = task.loss(model(task.train_inputs[:5]), task.train_targets[:5])
    loss.backward()
    assert loss.isfinite()
    assert task.train_inputs.shape[1:] == (int(chosen["history"]), 4 if chosen["observed"] == "all" else 1)
    assert task.train_targets.shape[1] == int(chosen["horizon"])
    assert len(model.head.layers) == 1 + 2 * int(chosen["dense"])
    assert (model.decoder is not None) == (chosen["strategy"] == "encoder-decoder")
    if chosen["cell"] in ("gru", "lstm", "rnn"):
        assert type(model.encoder).__name__.lower() == chosen["cell"]
        assert model.encoder.num_layers == int(chosen["depth"])
        assert model.encoder.bidirectional == (chosen["bidirectional"] == "both")


def test_another_seed_gives_other_epidemics():
    assert not np.array_equal(task(1).test.truth, task(2).test.truth)


def test_no_epidemic_is_in_two_parts():
    drawn = task()
    parts = [{series.tobytes() for series in part.truth} for part in (drawn.train, drawn.validation, drawn.test)]
    assert len(set.union(*parts)) == sum(len(part) for part in parts) == sum(map(len, parts))
    assert [len(part) for part in parts] == [settings()[f"{n}_epidemics"] for n in ("train", "validation", "test")]


@pytest.mark.parametrize("leakage", ["none", "windows", "epidemics", "scaling"])
def test_training_sees_of_the_test_epidemics_what_the_leak_says_and_no_more(monkeypatch, leakage):
    before = task(leakage=leakage)
    observed = EpidemicTask._observed
    first = settings()["train_epidemics"] + settings()["validation_epidemics"]

    def observed_perturbed(self, courses, generator):
        panel = observed(self, courses, generator)
        rows = slice(first, None) if len(panel) > first else slice(None)
        panel.truth[rows] *= 0.5
        panel.observed[rows] *= 0.5
        return panel

    monkeypatch.setattr(EpidemicTask, "_observed", observed_perturbed)
    after = task(leakage=leakage)
    tests, per_epidemic = settings()["test_epidemics"], settings()["origins_per_epidemic"]
    moved = (after.train_inputs != before.train_inputs).any(dim=(1, 2)).reshape(-1, per_epidemic).any(dim=1)
    assert not np.array_equal(after.test.reported, before.test.reported)
    assert (after.scaler == before.scaler) == (leakage != "scaling") or leakage == "scaling"
    expected = {"none": 0, "windows": tests, "epidemics": tests, "scaling": len(moved)}[leakage]
    assert int(moved.sum()) == expected
    assert moved[:expected].all()


def test_leaks_show_the_tested_epidemics_as_reported_or_reported_anew():
    clean, windows, epidemics = (task(leakage=leakage) for leakage in ("none", "windows", "epidemics"))
    generator = np.random.default_rng(0)
    assert np.array_equal(windows.leaked(generator).reported[:20], clean.test.reported)
    anew = epidemics.leaked(generator)
    np.testing.assert_array_equal(anew.truth[:20], clean.test.truth)
    assert not np.array_equal(anew.reported[:20], clean.test.reported)
    assert len(anew) == len(clean.train)
    assert windows.train_inputs.shape == clean.train_inputs.shape
    np.testing.assert_array_equal(anew.reported[20:], clean.train.reported[20:])


def test_scaling_gives_the_training_reports_mean_zero_and_deviation_one():
    drawn = task(observed="all")
    scaler = Scaler.fit(drawn.train.observed, drawn.floor)
    scaled = scaler.scale(np.moveaxis(baselines.log_share(drawn.train.observed, drawn.floor), 1, -1))
    np.testing.assert_allclose(scaled.mean(axis=(0, 1)), 0, atol=1e-9)
    np.testing.assert_allclose(scaled.std(axis=(0, 1)), 1)
    np.testing.assert_array_equal(scaler.mean, drawn.scaler.mean)


def test_training_origins_are_days_on_which_the_epidemic_is_visible():
    drawn = task()
    last = drawn.train_inputs[:, -1, 0].numpy() * drawn.scaler.deviation[0] + drawn.scaler.mean[0]
    assert np.exp(last).min() >= EpidemicTask.visible * (1 - 1e-4)
    assert drawn.train_inputs.shape == (settings()["train_epidemics"] * settings()["origins_per_epidemic"], 14, 1)


def test_inputs_hold_no_day_after_the_origin():
    drawn = task(observed="all")
    origins = np.full((len(drawn.test), 1), 60)
    before = drawn.inputs(drawn.test, origins)
    drawn.test.observed[:, :, 61:] = 0
    drawn.test.truth[:] = 0
    assert torch.equal(drawn.inputs(drawn.test, origins), before)


def test_what_is_observed_sums_to_the_population():
    observed = task(observed="all", noise=0.0).test.observed
    total = observed.sum(axis=1)
    np.testing.assert_allclose(total[observed[:, 1] > 0], 1, atol=1e-9)


def test_under_reporting_and_weekdays_change_the_reports_as_they_say():
    full, partly, weekly = task(noise=0.0), task(noise=0.0, least_reported=0.2), task(noise=0.0, weekday=0.5)
    share = partly.test.truth.max(axis=1) / full.test.truth.max(axis=1)
    assert 0.2 <= share.min() < share.max() <= 1
    np.testing.assert_array_equal(weekly.test.truth, full.test.truth)
    busy = full.test.truth > 0.02
    factor = weekly.test.reported[busy] / full.test.truth[busy]
    assert np.quantile(factor, [0.02, 0.5, 0.98]) == pytest.approx([0.5, 1, 1.5], abs=0.08)


def test_a_perfect_forecast_has_no_error_and_no_spread():
    drawn = task()
    responses, arrays = measured(drawn, certain(drawn))
    for name in ("error", "mae", "rmse", "mase", "wis", "dispersion", "peak_height_error"):
        assert responses[name] == pytest.approx(0, abs=1e-5), name
    assert responses["peak_day_error"] == 0
    assert arrays["wis_by_ahead"].shape == (28,)
    assert arrays["before_peak"].tolist() == list(range(-21, 0))


def test_forecasts_ten_percent_high_have_a_peak_height_error_of_ten_percent():
    drawn = task()
    high = certain(drawn) + np.log(1.1) / drawn.scaler.deviation[0]
    responses, _ = measured(drawn, high)
    assert responses["peak_height_error"] == pytest.approx(0.1, abs=1e-4)
    assert responses["peak_day_error"] == 0
    assert responses["wis"] == pytest.approx(responses["mae"]) == pytest.approx(responses["overprediction"])
    assert responses["coverage_95"] == 0


def test_forecasts_three_days_late_have_a_peak_day_error_of_three_days():
    drawn = task()
    outputs = certain(drawn)
    late = torch.cat([outputs[:, :1] - 9] * 3 + [outputs[:, :-3]], dim=1)
    assert measured(drawn, late)[0]["peak_day_error"] == 3


def test_a_forecast_of_no_change_has_the_error_of_persistence():
    drawn = task()
    responses, _ = drawn.evaluate(forecaster_of(0.0))
    assert responses["error"] == pytest.approx(responses["persistence_error"], rel=1e-6)


def test_references_do_not_depend_on_the_network_and_are_computed_once(monkeypatch):
    first, second = task(), task(cell="rnn", history=7, leakage="windows")
    responses, arrays = first.evaluate(forecaster_of(0.0))
    monkeypatch.setattr(EpidemicTask, "_compare", None)
    again, _ = second.evaluate(forecaster_of(1.0))
    names = {"persistence", "log_linear", "log_quadratic", "sir_fit", "oracle"}
    measures = ("error", "wis", "coverage_50", "coverage_95")
    for name in [f"{n}_{what}" for n in {*names, "arima", "ets"} for what in measures]:
        assert np.isfinite(responses[name])
        assert responses[name] == again[name]
    assert {f"wis_by_ahead_{name}" for name in names} <= set(arrays)


def test_the_oracle_and_the_sir_fit_beat_persistence_on_the_tests():
    responses, _ = task()._reference_results()
    assert responses["oracle_error"] < 0.02 < responses["sir_fit_error"] < responses["persistence_error"]


@pytest.mark.slow
def test_even_clean_reports_leave_the_peak_unsure_before_it_comes_and_intervals_say_so():
    """The peak cannot be forecast sharply before it happens (Castro et al., PNAS 2020;117:26190)."""
    chosen = STUDY.settings("quick", STUDY.baseline) | {"noise": 0.0}
    ensemble = Ensemble([Configuration("epidemic", "", "", "", chosen, {}, 0)], EpidemicTask)
    learn(ensemble, lambda *_: None)
    drawn = ensemble.tasks[0]
    origins, before = drawn.origins(drawn.test), drawn.origin_days < -7
    forecast = drawn.forecast(ensemble.predictor(0), drawn.test, origins)
    inside = coverage(forecast, baselines.windows(drawn.test.truth, origins, drawn.future))[
        ..., np.argmin(abs(NOMINAL - 0.95))
    ]
    assert inside[:, before].mean() > 0.9
    low, high = (forecast[:, :, 13, LEVELS.searchsorted(level)] for level in (0.025, 0.975))
    width = (high - low) / drawn.test.peak_height[:, None]
    assert np.median(width[:, before]) > max(0.3, 1.5 * np.median(width[:, drawn.origin_days >= 0]))


def test_unseen_epidemics_spread_faster_than_any_of_training(monkeypatch):
    seen = []
    draw_rates = sird.draw_rates

    def noted(count, generator, r0):
        seen.append(r0)
        return draw_rates(count, generator, r0)

    monkeypatch.setattr(sird, "draw_rates", noted)
    responses, _ = task(5).evaluate(forecaster_of(0.0))
    assert seen == [epidemic.R0, UNSEEN_R0]
    assert epidemic.R0[1] <= UNSEEN_R0[0]
    assert np.isfinite(responses["unseen_error"])


def test_validation_of_a_perfect_forecast_has_no_error_and_no_loss():
    drawn = task()
    sides, steps = (len(drawn.validation_inputs), 2, 28), (len(drawn.validation_inputs), 2, 11)
    perfect = Quantiles(drawn.validation_targets, torch.zeros(sides), torch.zeros(steps))
    assert drawn.validate(perfect)["validation_error"] == pytest.approx(0, abs=1e-5)
    assert drawn.loss(perfect, drawn.validation_targets) == 0


def test_arrays_of_the_figures_are_small_and_float32():
    drawn = task()
    _, arrays = drawn.evaluate(forecaster_of(0.0))
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["truth"] == shapes["observed"] == (4, epidemic.DAYS)
    assert shapes["forecast"] == (4, 4, 28)
    assert shapes["forecast_50"] == shapes["forecast_95"] == (4, 4, 28, 2)
    assert shapes["susceptible"] == shapes["dead"] == (1, epidemic.DAYS)
    assert {array.dtype for array in arrays.values() if array.dtype.kind != "U"} == {np.dtype(np.float32)}  # U: names
    assert sum(array.nbytes for array in arrays.values()) < 50_000


def test_medians_are_what_the_figure_of_forecasts_shows():
    drawn = task()
    outputs = torch.no_grad()(drawn.model())
    shown = drawn._shown(outputs)
    origins = shown["peak_day"][:, None].astype(int) + shown["origin"].astype(int)
    quantiles = drawn.forecast(outputs, drawn.test[:4], origins)
    np.testing.assert_allclose(shown["forecast"], quantiles[..., MEDIAN], rtol=1e-5)
    assert (shown["forecast_95"][..., 0] <= shown["forecast_50"][..., 0]).all()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"history": 0}, "history 0 is not possible; allowed are 1 to 28 days"),
        ({"history": 29}, "history 29 is not possible; allowed are 1 to 28 days"),
        ({"horizon": 5}, "horizon 5 is too short; at least 7 days are scored"),
    ],
)
def test_windows_that_no_epidemic_has_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        task(**chosen)
