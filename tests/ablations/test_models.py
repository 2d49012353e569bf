"""Claims on the networks: parameter counts by formula, shapes, and equality of stacked and single models."""

import pytest
import torch
from networks import assert_stacked_equal_alone
from torch.func import functional_call, stack_module_state

import recurve
from ablations.forecasting.scores import QUANTILES
from ablations.models import CELLS, Dropout, Forecaster, Quantiles
from ablations.models.recurrent import RECURRENT, STRATEGIES, QuantileHead

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def recurrent_parameters(gates, inputs, hidden):
    return gates * (hidden * inputs + hidden * hidden + 2 * hidden)


@pytest.mark.parametrize(("cell", "expected"), [("lstm", 67_584), ("gru", 50_688), ("rnn", 16_896)])
def test_recurrent_layers_have_the_published_number_of_parameters(cell, expected):
    assert count(RECURRENT[cell](2, 128)) == expected == recurrent_parameters(GATES[cell], 2, 128)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("dense", [0, 1])
def test_forecaster_parameters_follow_the_formula(cell, depth, dense):
    hidden, horizon = 5, 28
    recurrent = sum(recurrent_parameters(GATES[cell], 1 if layer == 0 else hidden, hidden) for layer in range(depth))
    head = dense * (hidden * hidden + hidden) + (hidden + 1) * 3 * horizon + 22  # three numbers a day, 22 shared steps
    assert count(Forecaster(cell, hidden, depth, dense, horizon)) == recurrent + head


FORECASTERS = {
    **{cell: (cell, {}) for cell in CELLS},
    **{f"{cell} {strategy}": (cell, {"strategy": strategy}) for cell in ("gru", "lstm") for strategy in STRATEGIES[1:]},
    "gru both ways": ("gru", {"bidirectional": True}),
    "four series": ("gru", {"inputs": 4}),
    "lstm that keeps": ("lstm", {"keep_bias": 1.0}),
}


def forecaster(name, horizon=3):
    cell, options = FORECASTERS[name]
    return Forecaster(cell, 4, 2, 1, horizon, history=7, **options)


@pytest.mark.parametrize("name", FORECASTERS)
def test_forecasters_give_ascending_quantiles_of_every_day_of_the_horizon(name):
    model = forecaster(name)
    quantiles = model(torch.randn(5, 7, FORECASTERS[name][1].get("inputs", 1))).values()
    assert quantiles.shape == (5, 3, 23)
    assert (quantiles.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("name", FORECASTERS)
def test_stacked_models_compute_and_learn_what_each_does_alone(name):
    inputs = torch.randn(5, 7, FORECASTERS[name][1].get("inputs", 1))
    assert_stacked_equal_alone(lambda: forecaster(name), inputs, Quantiles.values)


@pytest.mark.parametrize("spread", [1.0, 0.0, 1e-6])
def test_the_loss_is_twice_the_mean_pinball_loss_of_the_quantiles_and_so_are_its_gradients(spread):
    truth = 3 * torch.randn(2, 5, 7, dtype=torch.float64)
    parts = [torch.randn(2, 5, 7), spread * torch.rand(2, 5, 2, 7), torch.rand(2, 5, 2, 11).cumsum(-1)]
    quantiles = Quantiles(*(part.double().requires_grad_() for part in parts))
    miss, level = truth[..., None] - quantiles.values(), torch.tensor(QUANTILES, dtype=torch.float64)
    expected = 2 * torch.maximum(level * miss, (level - 1) * miss).mean()
    assert quantiles.loss(truth).item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(
        *(torch.autograd.grad(v, quantiles) for v in (quantiles.loss(truth), expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


def test_a_certain_forecast_loses_its_absolute_error():
    quantiles = Quantiles(torch.zeros(4, 7), torch.zeros(4, 2, 7), torch.rand(4, 2, 11).cumsum(-1))
    truth = torch.randn(4, 7)
    assert quantiles.loss(truth).item() == pytest.approx(truth.abs().mean().item(), rel=1e-6)


def test_first_quantiles_are_those_of_a_normal_distribution():
    steps = QuantileHead(4, 0, 1)(torch.zeros(1, 4)).values()[0, 0]
    z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(QUANTILES))
    unit = (steps - steps[11]) / (steps[-1] - steps[11])
    torch.testing.assert_close(unit[11:], (z / z[-1])[11:])
    below = (steps - steps[11]) / (steps[11] - steps[0])
    torch.testing.assert_close(below[:12], (z / z[-1])[:12])


def test_a_recursive_forecast_is_one_day_forecasts_fed_back():
    model = Forecaster("gru", 6, 1, 0, 3, strategy="recursive")
    history = torch.randn(2, 7, 1)
    medians = model(history).median
    for day in range(1, 3):
        longer = torch.cat([history, history[:, -1:] + medians[:, :day, None]], dim=1)
        one = Forecaster.forward(model, longer).median[:, 0]
        torch.testing.assert_close(one + medians[:, day - 1], medians[:, day])


def test_a_network_read_both_ways_ends_where_each_direction_has_read_all():
    model = Forecaster("gru", 6, 1, 0, 3, bidirectional=True)
    history = torch.randn(2, 7, 1)
    states, last = model.encoder(history)
    both = torch.cat([states[:, -1, :6], states[:, 0, 6:]], dim=-1)
    torch.testing.assert_close(model._summary(states, last), both)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("strategy", ["direct", "encoder-decoder"])
def test_the_bias_of_the_keeping_gate_is_what_both_vectors_sum_to(cell, strategy):
    parts = Forecaster(cell, 5, 2, 0, 3, keep_bias=2.0, strategy=strategy)
    for part in (parts.encoder, parts.decoder):
        for layer in range(2 if part is not None else 0):
            both = getattr(part, f"bias_ih_l{layer}") + getattr(part, f"bias_hh_l{layer}")
            assert both[5:10].eq(2).all()
            assert not both[:5].eq(2).any()


def test_setting_both_of_torchs_bias_vectors_to_one_gives_a_forget_bias_of_two():
    lstm = RECURRENT["lstm"](1, 3)
    for name, parameter in lstm.named_parameters():
        parameter.detach().fill_(1.0 if name.startswith("bias") else 0.0)
    one = [torch.ones(1, 1, 3), torch.ones(1, 1, 3)]
    _, (_, cell) = lstm(torch.zeros(1, 1, 1), tuple(one))
    gate = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(cell, (gate + gate * torch.tanh(torch.tensor(2.0))).expand(1, 1, 3))


def test_leak_one_is_the_plain_rnn_and_less_is_the_equation():
    plain, same, leaky = (recurve.nn.RNN(2, 4, batch_first=True, leak=leak) for leak in (1.0, 1.0, 0.3))
    same.load_state_dict(plain.state_dict())
    leaky.load_state_dict(plain.state_dict())
    inputs = torch.randn(3, 6, 2)
    torch.testing.assert_close(plain(inputs)[0], same(inputs)[0])
    state = torch.zeros(3, 4)
    for day in range(6):
        inner = (
            inputs[:, day] @ plain.weight_ih_l0.T + plain.bias_ih_l0 + state @ plain.weight_hh_l0.T + plain.bias_hh_l0
        )
        state = 0.7 * state + 0.3 * torch.tanh(inner)
    torch.testing.assert_close(leaky(inputs)[0][:, -1], state)
    assert "leak=0.3" in repr(leaky)
    with pytest.raises(ValueError, match=r"leak must lie in \(0, 1\], got 0"):
        recurve.nn.RNN(2, 4, leak=0)


def test_an_echo_state_network_learns_its_head_alone():
    model = Forecaster("esn", 16, 1, 0, 3)
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"head"}
    radius = torch.linalg.eigvals(model.encoder.weight_hh_l0).abs().max()
    assert radius.item() == pytest.approx(0.9, rel=1e-4)


def test_the_readout_of_an_echo_state_network_is_a_closed_form_ridge_regression():
    """At the solution of the normal equations the gradient of the squared error with penalty vanishes."""
    model = Forecaster("esn", 16, 1, 0, 3).double()
    inputs, targets, penalty = torch.randn(50, 7, 1).double(), torch.randn(50, 9).double(), 0.1
    readout = model.head.layers[0]
    with torch.no_grad():
        states = torch.cat([model._summary(*model.encoder(inputs)), torch.ones(50, 1)], dim=1)
        solution = torch.linalg.solve(states.T @ states + penalty * torch.eye(17).double(), states.T @ targets)
        readout.weight.copy_(solution[:-1].T)
        readout.bias.copy_(solution[-1])
    outputs = readout(states[:, :-1])
    loss = (outputs - targets).square().sum() + penalty * (readout.weight.square().sum() + readout.bias.square().sum())
    gradients = torch.autograd.grad(loss, [readout.weight, readout.bias])
    assert max(gradient.abs().max() for gradient in gradients) < 1e-10 * (states.T @ targets).abs().max()


def test_a_temporal_convolution_sees_the_whole_history_and_nothing_later():
    model = Forecaster("tcn", 16, 1, 0, 3, history=14)
    history = torch.randn(1, 14, 1, requires_grad=True)
    states, _ = model.encoder(history)
    (gradient,) = torch.autograd.grad(states[0, -1].sum(), history, retain_graph=True)
    assert gradient[0, 0].abs() > 0
    (gradient,) = torch.autograd.grad(states[0, 5].sum(), history)
    assert not gradient[0, 6:].any()


def test_dropout_zeroes_the_asked_for_share_anew_at_every_step_and_keeps_the_mean():
    layer, ones = Dropout(0.3), torch.ones(200, 500)
    layer.stream.fill_(7)
    first, second = layer(ones), layer(ones)
    assert (first == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)  # 3.5 standard errors
    assert first.mean().item() == pytest.approx(1, abs=0.01)
    both = ((first == 0) & (second == 0)).double().mean().item()
    assert both == pytest.approx(0.09, abs=0.005)
    assert layer.eval()(ones).equal(ones)


def test_dropout_in_an_ensemble_is_each_models_own():
    layers = [Dropout(probability) for probability in (0.0, 0.5, 0.5)]
    for stream, layer in enumerate(layers):
        layer.stream.fill_(stream)
    layers[0].drops = True  # it stands for all
    _, buffers = stack_module_state(layers)
    inputs = torch.randn(3, 40, 8)
    outputs = torch.vmap(lambda b, x: functional_call(layers[0], b, (x,)))(buffers, inputs)
    for output, layer, x in zip(outputs, layers, inputs, strict=True):
        assert output.equal(layer(x))
    assert not (outputs[1] == 0).equal(outputs[2] == 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Forecaster("elman", 4, 1, 0, 7), "cell 'elman' is unknown; allowed are gru, gru-before, lstm"),
        (lambda: Forecaster("gru", 4, 1, 0, 7, strategy="guess"), "strategy 'guess' is unknown; allowed are direct"),
        (lambda: Forecaster("mlp", 4, 1, 0, 7, bidirectional=True), "cell 'mlp' has no state"),
        (
            lambda: Forecaster("gru", 4, 1, 0, 7, bidirectional=True, strategy="recursive"),
            "no last state to go on from",
        ),
        (lambda: Forecaster("gru", 4, 1, 0, 7, inputs=4, strategy="recursive"), "feed back the one series"),
        (lambda: Forecaster("rnn", 4, 1, 0, 7, keep_bias=1.0), "keep_bias is for lstm, gru, gru-before"),
        (lambda: Dropout(1.0), "at least 0 and below 1, got 1.0"),
    ],
)
def test_an_unknown_part_lists_those_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
