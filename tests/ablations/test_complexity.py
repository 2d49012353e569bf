"""Claims on complexity: parameters, arithmetic and memory by formula."""

import pytest
import torch

import recurve.nn
from ablations import studies
from ablations.complexity import complexity

STEPS, BATCH, INPUTS, HIDDEN = 7, 5, 3, 16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class _Sequences:
    def __init__(self, cell):
        self.cell = cell
        self.train_inputs, self.train_targets = torch.randn(20, STEPS, INPUTS), torch.randn(20, STEPS, HIDDEN)

    def model(self):
        return _LastOutput(getattr(recurve.nn, self.cell)(INPUTS, HIDDEN, batch_first=True))

    def loss(self, outputs, targets):
        return torch.nn.functional.mse_loss(outputs, targets)


class _LastOutput(torch.nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, inputs):
        return self.recurrent(inputs)[0]


@pytest.mark.parametrize("cell", GATES)
def test_arithmetic_of_recurrent_layers_follows_the_formula(cell):
    assert complexity(_Sequences(cell), BATCH).flops == 2 * STEPS * GATES[cell] * HIDDEN * (INPUTS + HIDDEN)


def test_memory_grows_with_the_batch_and_holds_weights_gradients_and_moments():
    small, large = (complexity(_Sequences("GRU"), batch) for batch in (1, 16))
    assert small.peak_memory > 4 * 4 * small.parameters
    per_example = (large.peak_memory - small.peak_memory) / 15
    assert per_example >= 4 * STEPS * HIDDEN  # the hidden states at least
    assert per_example <= 4 * STEPS * HIDDEN * 12


@pytest.mark.parametrize("name", studies.names())
def test_every_study_has_a_complexity(name):
    study = studies.load(name)
    task = study.task(study.settings("smoke", study.baseline), 0)
    found = complexity(task, 8)
    assert found == complexity(task, 8)
    assert found.flops > found.parameters / 100
