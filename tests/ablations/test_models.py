"""Claims on the networks: parameter counts by formula, shapes, and equality of stacked and single models."""

import pytest
import torch
from torch.func import functional_call, stack_module_state

from ablations.models import CELLS, Dropout, Forecaster

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def recurrent_parameters(gates, inputs, hidden):
    return gates * (hidden * inputs + hidden * hidden + 2 * hidden)


@pytest.mark.parametrize(("cell", "expected"), [("lstm", 67_584), ("gru", 50_688), ("rnn", 16_896)])
def test_recurrent_layers_have_the_published_number_of_parameters(cell, expected):
    assert count(CELLS[cell](2, 128)) == expected == recurrent_parameters(GATES[cell], 2, 128)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("dense", [0, 1])
def test_forecaster_parameters_follow_the_formula(cell, depth, dense):
    hidden, horizon = 5, 28
    recurrent = sum(recurrent_parameters(GATES[cell], 1 if layer == 0 else hidden, hidden) for layer in range(depth))
    head = dense * (hidden * hidden + hidden) + hidden * horizon + horizon
    assert count(Forecaster(cell, hidden, depth, dense, horizon)) == recurrent + head


def test_forecaster_gives_every_day_of_the_horizon():
    assert Forecaster("gru", 6, 1, 1, 28)(torch.randn(3, 14, 1)).shape == (3, 28)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        *[(lambda cell=cell: Forecaster(cell, 4, 2, 1, 3), torch.randn(5, 7, 1)) for cell in GATES],
    ],
    ids=[*GATES],
)
def test_stacked_models_compute_and_learn_what_each_does_alone(make, inputs):
    models = [make() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    outputs = torch.vmap(lambda p, b: functional_call(models[0], (p, b), (inputs,)))(parameters, buffers)
    outputs.square().sum().backward()
    for member, model in enumerate(models):
        alone = model(inputs)
        alone.square().sum().backward()
        torch.testing.assert_close(outputs[member], alone)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[name].grad[member], parameter.grad, rtol=1e-4, atol=1e-5)


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
    _, buffers = stack_module_state(layers)
    inputs = torch.randn(3, 40, 8)
    outputs = torch.vmap(lambda b, x: functional_call(layers[0], b, (x,)))(buffers, inputs)
    for output, layer, x in zip(outputs, layers, inputs, strict=True):
        assert output.equal(layer(x))
    assert not (outputs[1] == 0).equal(outputs[2] == 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Forecaster("elman", 4, 1, 0, 7), "cell 'elman' is unknown; allowed are gru, lstm, rnn"),
        (lambda: Dropout(1.0), "at least 0 and below 1, got 1.0"),
    ],
)
def test_an_unknown_part_lists_those_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
