"""Claims on the epidemic study: its data never leaks, its extrapolations give known errors, its measures are exact."""

import numpy as np
import pytest
import torch

from ablations.data import sird
from ablations.design import one_factor_at_a_time
from ablations.models import Forecaster
from ablations.studies import epidemic
from ablations.studies.epidemic import STUDY, Epidemics, EpidemicTask, Scaler


def settings(**chosen):
    return STUDY.settings("smoke", STUDY.baseline) | chosen


def single_wave():
    """The noise-free epidemic of the known answers: beta 0.25, mu 0.1."""
    rates = sird.Rates(*(np.array([value]) for value in (0.25, 0.1, 0.98, 1e-3)))
    infectious = sird.ode(rates, epidemic.DAYS).infectious
    return Epidemics(infectious, infectious)


@pytest.mark.parametrize(("degree", "error"), [(0, 0.212), (1, 0.146), (2, 0.019)])
def test_noise_free_extrapolations_have_the_known_errors(degree, error):
    """Polynomials through the last degree + 1 days of the log share, days up to two weeks from the peak."""
    assert epidemic.extrapolation_error(single_wave(), degree, window=degree + 1) == pytest.approx(error, abs=5e-4)


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("window", [3, 14])
def test_an_extrapolation_continues_its_own_curve_exactly(degree, window):
    days = np.arange(60)
    series = np.exp(np.polyval([-0.002, 0.1, -6][2 - degree :], days))[None]
    forecast = epidemic.extrapolate(series, np.array([[40]]), degree, window, np.array([1, 7]))
    np.testing.assert_allclose(forecast[0, 0], series[0, [41, 47]], rtol=1e-9)


def test_an_extrapolation_never_exceeds_the_population():
    growing = np.exp(np.linspace(-9, -1, 30))[None]
    assert epidemic.extrapolate(growing, np.array([[29]]), 1, 7, np.array([28]))[0, 0, 0] == 1


def test_windows_hold_the_values_at_origin_plus_offset():
    series = np.arange(20).reshape(2, 10)
    taken = epidemic.windows(series, np.array([[3, 5], [4, 9]]), np.array([-2, 0]))
    assert taken.tolist() == [[[1, 3], [3, 5]], [[12, 14], [17, 19]]]


def test_every_forecast_around_a_peak_has_the_longest_history_and_its_horizon():
    epidemics = epidemic.simulate(300, 0.1, np.random.default_rng(0))
    assert len(epidemics) == 300
    assert epidemic.peak_origins(epidemics).min() >= epidemic.LONGEST_HISTORY - 1
    assert epidemics.peak_day.max() + epidemic.AROUND_PEAK + settings()["horizon"] < epidemic.DAYS


@pytest.mark.parametrize(
    "condition", one_factor_at_a_time(STUDY, {f.name: [x.name for x in f.levels] for f in STUDY.factors})
)
def test_same_seed_gives_the_same_epidemics_and_origins_in_every_condition(condition):
    baseline, other = (EpidemicTask(STUDY.settings("smoke", c), seed=3) for c in (STUDY.baseline, condition))
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(baseline, part).reported, getattr(other, part).reported)
    assert torch.equal(baseline.train_targets, other.train_targets)
    shared = min(baseline.train_inputs.shape[1], other.train_inputs.shape[1])
    assert torch.equal(baseline.train_inputs[:, -shared:], other.train_inputs[:, -shared:])


def test_another_seed_gives_other_epidemics():
    one, other = (EpidemicTask(settings(), seed) for seed in (1, 2))
    assert not np.array_equal(one.test.truth, other.test.truth)


def test_no_epidemic_is_in_two_parts():
    task = EpidemicTask(settings(), seed=0)
    parts = [{series.tobytes() for series in part.truth} for part in (task.train, task.validation, task.test)]
    assert len(set.union(*parts)) == sum(len(part) for part in parts) == sum(map(len, parts))
    assert [len(part) for part in parts] == [settings()[f"{n}_epidemics"] for n in ("train", "validation", "test")]


def test_training_sees_nothing_of_the_validation_and_test_epidemics(monkeypatch):
    before = EpidemicTask(settings(), seed=0)
    simulate = epidemic.simulate

    def simulate_perturbed(*arguments):
        epidemics = simulate(*arguments)
        for series in (epidemics.truth, epidemics.reported):
            series[settings()["train_epidemics"] :] *= 0.5
        return epidemics

    monkeypatch.setattr(epidemic, "simulate", simulate_perturbed)
    after = EpidemicTask(settings(), seed=0)
    assert not np.array_equal(after.test.reported, before.test.reported)
    assert after.scaler == before.scaler
    assert torch.equal(after.train_inputs, before.train_inputs)
    assert torch.equal(after.train_targets, before.train_targets)


def test_scaling_gives_the_training_reports_mean_zero_and_deviation_one():
    task = EpidemicTask(settings(), seed=0)
    scaled = Scaler.fit(task.train).scale(epidemic.log_share(task.train.reported))
    assert (scaled.mean(), scaled.std()) == pytest.approx((0, 1), abs=1e-9)


def test_training_origins_are_days_on_which_the_epidemic_is_visible():
    task = EpidemicTask(settings(), seed=0)
    last = task.train_inputs[:, -1, 0].numpy() * task.scaler.deviation + task.scaler.mean
    assert np.exp(last).min() >= epidemic.VISIBLE * (1 - 1e-5)
    assert task.train_inputs.shape == (settings()["train_epidemics"] * settings()["origins_per_epidemic"], 14, 1)


def test_inputs_hold_no_day_after_the_origin(monkeypatch):
    task = EpidemicTask(settings(), seed=0)
    origins = np.full((len(task.test), 1), 60)
    before = task._inputs(task.test, origins)
    task.test.reported[:, 61:] = 0
    task.test.truth[:] = 0
    assert torch.equal(task._inputs(task.test, origins), before)


class Oracle:
    """Answers every request for forecasts with the targets themselves, or with what `change` makes of them."""

    def __init__(self, task, part, change=lambda targets: targets):
        self.task, self.part, self.change, self.asked = task, part, change, []
        original = task._inputs

        def inputs(epidemics, origins):
            self.asked.append(task._targets(epidemics, origins))
            return original(epidemics, origins)

        task._inputs = inputs

    def __call__(self, inputs):
        return self.change(self.asked[-1])


def test_a_perfect_forecast_has_no_error():
    task = EpidemicTask(settings(), seed=0)
    responses, arrays = task.evaluate(Oracle(task, "test"))
    assert responses["error"] == pytest.approx(0, abs=1e-6)
    assert responses["peak_day_error"] == 0
    assert responses["peak_height_error"] == pytest.approx(0, abs=1e-6)
    for row, peak in enumerate(arrays["peak_day"].astype(int)):
        truth = arrays["truth"][row]
        for column, offset in enumerate(arrays["origin"].astype(int)):
            first = peak + offset + 1
            np.testing.assert_allclose(arrays["forecast"][row, column], truth[first : first + 28], rtol=1e-4, atol=2e-5)


def test_forecasts_ten_percent_high_have_a_peak_height_error_of_ten_percent():
    task = EpidemicTask(settings(), seed=0)
    responses, _ = task.evaluate(Oracle(task, "test", lambda targets: targets + np.log(1.1)))
    assert responses["peak_height_error"] == pytest.approx(0.1, abs=1e-5)
    assert responses["peak_day_error"] == 0


def test_forecasts_three_days_late_have_a_peak_day_error_of_three_days():
    task = EpidemicTask(settings(), seed=0)
    late = Oracle(
        task,
        "test",
        lambda targets: torch.cat([targets[:, :1] - 9, targets[:, :1] - 9, targets[:, :1] - 9, targets[:, :-3]], 1),
    )
    assert task.evaluate(late)[0]["peak_day_error"] == 3


def test_a_forecast_of_no_change_has_the_error_of_persistence():
    task = EpidemicTask(settings(), seed=0)
    responses, _ = task.evaluate(lambda inputs: torch.zeros(len(inputs), 28))
    assert responses["error"] == pytest.approx(responses["persistence_error"], rel=1e-6)


def test_references_do_not_depend_on_the_network():
    task = EpidemicTask(settings(), seed=0)
    references = [
        {name: value for name, value in task.evaluate(predict)[0].items() if name.startswith(("pers", "log"))}
        for predict in (lambda x: torch.zeros(len(x), 28), lambda x: torch.ones(len(x), 28))
    ]
    assert references[0] == references[1]
    assert set(references[0]) == {"persistence_error", "log_linear_error", "log_quadratic_error"}


def test_validation_reports_a_finite_loss_and_error():
    task = EpidemicTask(settings(), seed=0)
    measures = task.validate(torch.no_grad()(task.model()))
    assert set(measures) == {"validation_loss", "validation_error"}
    assert all(np.isfinite(value) for value in measures.values())


def test_arrays_of_the_figure_are_small_and_float32():
    task = EpidemicTask(settings(), seed=0)
    _, arrays = task.evaluate(lambda inputs: torch.zeros(len(inputs), 28))
    assert {name: array.shape for name, array in arrays.items()} == {
        "day": (epidemic.DAYS,),
        "truth": (4, epidemic.DAYS),
        "observed": (4, epidemic.DAYS),
        "origin": (4,),
        "peak_day": (4,),
        "forecast": (4, 4, 28),
    }
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "condition", one_factor_at_a_time(STUDY, {f.name: [x.name for x in f.levels] for f in STUDY.factors})
)
def test_every_condition_makes_the_model_that_it_names(condition):
    chosen = dict(condition.levels)
    task = EpidemicTask(STUDY.settings("smoke", condition), seed=0)
    model = task.model()
    assert isinstance(model, Forecaster)
    assert type(model.recurrent).__name__.lower() == chosen["cell"]
    assert model.recurrent.num_layers == int(chosen["depth"])
    assert len(model.head) == 1 + 2 * int(chosen["dense"])
    assert task.train_inputs.shape[1] == int(chosen["history"])
    assert model(task.train_inputs[:5]).shape == task.train_targets[:5].shape


@pytest.mark.parametrize("history", [0, 29])
def test_a_history_that_no_epidemic_has_is_refused(history):
    settings = STUDY.settings("smoke", STUDY.baseline) | {"history": history}
    with pytest.raises(ValueError, match=f"history {history} is not possible; allowed are 1 to 28 days"):
        EpidemicTask(settings, 0)
