"""Claims on the memory study: its task is the adding problem, and gradients fade or stay as theory says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ablations.design import DesignError, Factor, Level, one_factor_at_a_time
from ablations.models import Reader
from ablations.studies.memory import STUDY, VARIANCE, MemoryTask, adding_problem
from ablations.training import fresh_model

CONDITIONS = one_factor_at_a_time(STUDY, {f.name: [level.name for level in f.levels] for f in STUDY.factors})


def settings(**chosen):
    return STUDY.settings("smoke", STUDY.baseline) | chosen


def test_the_answer_is_the_sum_of_one_marked_number_of_each_half():
    inputs, targets = adding_problem(500, 13, np.random.default_rng(0))
    numbers, marks = inputs.unbind(-1)
    assert (marks[:, :6].sum(1) == 1).all()
    assert (marks[:, 6:].sum(1) == 1).all()
    torch.testing.assert_close((numbers * marks).sum(1), targets)


def test_who_always_answers_one_explains_nothing():
    _, targets = adding_problem(200_000, 2, np.random.default_rng(1))
    assert float((targets - 1).square().mean()) == pytest.approx(VARIANCE, rel=0.01)
    task = MemoryTask(settings(test_sequences=5000), seed=0)
    responses, _ = task.evaluate(Answer(task, torch.ones_like))
    assert responses["error"] == pytest.approx(1, rel=0.05)


class Answer:
    """A predictor that answers by a rule, beside a fresh model."""

    def __init__(self, task, rule):
        self.task, self.rule = task, rule

    def __call__(self, inputs):
        return self.rule(inputs[:, 0, 0])

    def module(self):
        return fresh_model(self.task, 0)


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_same_seed_gives_the_same_sequences_in_every_condition_of_one_length(condition):
    baseline, other = (MemoryTask(STUDY.settings("smoke", c), seed=3) for c in (STUDY.baseline, condition))
    same = "length=40" in str(condition)
    assert all(torch.equal(a, b) for a, b in zip(baseline.split, other.split, strict=True)) == same
    assert other.model()(other.train_inputs[:5]).shape == (5,)


def norms(**chosen):
    """Gradient norms of a fresh network on sequences of 40 steps, the last one's as unit."""
    task = MemoryTask(settings(length=40, **chosen), seed=0)
    found = task.gradient_norms(fresh_model(task, 0))
    return found / found[-1]


def test_untrained_gradients_vanish_unless_the_forget_gate_starts_open():
    default, wide_open, plain = norms()[0], norms(forget_bias=4.0)[0], norms(cell="rnn")[0]
    assert default < 1e-6
    assert plain < 1e-6
    assert 1e-2 < wide_open < 1e2


def test_gradient_norms_are_those_of_autograd():
    task = MemoryTask(settings(length=5, cell="rnn"), seed=0)
    model = fresh_model(task, 0).double()
    task._inputs[1], task._targets[1] = task._inputs[1].double(), task._targets[1].double()
    recurrent = model.recurrent
    state, states = torch.zeros(len(task._inputs[1]), task.settings["hidden_size"], dtype=torch.float64), []
    for x in task._inputs[1].unbind(1):
        pre = torch.nn.functional.linear(x, recurrent.weight_ih_l0, recurrent.bias_ih_l0)
        state = torch.tanh(pre + torch.nn.functional.linear(state, recurrent.weight_hh_l0, recurrent.bias_hh_l0))
        state.retain_grad()
        states.append(state)
    task.loss(model.head(state).squeeze(-1), task._targets[1]).backward()
    expected = [float(s.grad.norm()) for s in states]
    np.testing.assert_allclose(task.gradient_norms(model), expected, rtol=1e-9)


def test_an_identity_network_starts_as_copies_of_its_state():
    model = Reader("irnn", 2, 7, "uniform", None)
    assert torch.equal(model.recurrent.weight_hh_l0, torch.eye(7))
    assert not model.recurrent.bias_ih_l0.any()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"cell": "elman"}, "cell 'elman' is unknown; allowed are lstm"),
        ({"initialisation": "zero"}, "initialisation 'zero' is unknown"),
        ({"cell": "gru", "forget_bias": 1.0}, "cell 'gru' has no forget gate"),
        ({"length": 1}, "length 1 is too short for two marks"),
    ],
)
def test_impossible_settings_are_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        MemoryTask(settings(**chosen), seed=0).model()


def test_a_setting_belongs_to_one_factor():
    second = Factor("start", "Start", (Level("a", {"cell": "gru"}), Level("b", {"length": 3})))
    with pytest.raises(DesignError, match=r"and start both set '(cell|length)'; a setting belongs to one factor"):
        replace(STUDY, factors=(*STUDY.factors, second))
