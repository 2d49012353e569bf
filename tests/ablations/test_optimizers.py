"""Claims on the optimizers: each is torch's with a rate per model; schedules and averages are what they say."""

import math

import pytest
import torch

from ablations.optimizers import OF_TORCH, Average, Optimizer, schedule


@pytest.mark.parametrize("rates", [[0.01, 0.001], [0.01, 0.01]], ids=["different", "alike"])
@pytest.mark.parametrize("name", OF_TORCH)
def test_an_optimizer_with_a_rate_per_model_is_torchs_with_each_rate(name, rates):
    targets = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    stacked = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    alone = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in rates]
    ours = Optimizer(name, [stacked], torch.tensor(rates, dtype=torch.float64), torch.tensor([0.5]))
    theirs = [OF_TORCH[name]([weights], lr=rate / 2) for weights, rate in zip(alone, rates, strict=True)]
    for _ in range(20):
        (stacked - targets).pow(4).sum().backward()
        ours.step()
        for one, weights, target in zip(theirs, alone, targets, strict=True):
            one.zero_grad()
            (weights - target).pow(4).sum().backward()
            one.step()
    torch.testing.assert_close(stacked.detach(), torch.stack(alone).detach(), rtol=1e-7, atol=0)


def test_schedules_have_their_shapes():
    cycle, cosine = (schedule(name, 100).tolist() for name in ("one-cycle", "cosine"))
    assert max(cycle) == pytest.approx(1, abs=0.03)
    assert cycle.index(max(cycle)) in (19, 20)
    assert cycle[:20] == sorted(cycle[:20])
    assert cycle[20:] == sorted(cycle[20:], reverse=True)
    assert cosine[49] + cosine[50] == pytest.approx(1)
    assert cosine[24] == pytest.approx((1 + math.cos(math.pi * 0.245)) / 2)
    assert cycle[-1] < 1e-3
    assert schedule("constant", 9).tolist() == [1.0] * 9


def test_an_average_without_decay_is_the_tensor_itself():
    tensors = {"weight": torch.ones(3)}
    average = Average(tensors, 0.0)
    tensors["weight"].add_(1)
    average.update()
    assert average.values["weight"] is tensors["weight"]


def test_an_average_forgets_at_its_rate_and_copies_counters():
    tensors = {"weight": torch.ones(1), "steps": torch.tensor(0)}
    average = Average(tensors, 0.5)
    for step in range(200):  # long enough for the full decay
        tensors["weight"].fill_(step)
        tensors["steps"].fill_(step)
        average.update()
    assert average.values["weight"].item() == pytest.approx(199 - 1, rel=1e-5)  # the mean lag is decay / (1 - decay)
    assert average.values["steps"].item() == 199


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Optimizer("lion", [], torch.ones(1)), "optimizer 'lion' is unknown; allowed are adam, adamw, sgd"),
        (lambda: schedule("step", 2), "schedule 'step' is unknown; allowed are constant, cosine, one-cycle"),
        (lambda: Average({}, 1.0), "averaging must be at least 0 and below 1, got 1.0"),
    ],
)
def test_an_unknown_name_lists_those_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
