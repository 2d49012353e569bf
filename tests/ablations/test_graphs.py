"""Claims on recorded training steps: the same numbers as launched ones, by a recorder that needs no GPU."""

import time

import pytest
import torch

from ablations.graphs import WARM_UP, Replayed


class HostRecorder:
    """Records by keeping the work: a replay does it again into the places of the first result and gradients."""

    def __init__(self, parameters, seconds=0.0):
        self.parameters, self.seconds, self.replays = parameters, seconds, 0

    def warm_up(self, work):
        return work()

    def record(self, work):
        with torch.enable_grad():
            result = work()  # a GPU only notes it down, so its result must not be used
        places = [result.fill_(torch.nan), *(p.grad.fill_(torch.nan) for p in self.parameters)]

        def replay():
            self.replays += 1
            time.sleep(self.seconds)
            for p in self.parameters:
                p.grad = None
            found = work()
            for place, value in zip(places, [found, *(p.grad for p in self.parameters)], strict=True):
                place.copy_(value)

        return result, replay

    def finish(self):
        pass


def training(steps, wrap):
    """Losses and weights of a linear model trained by plain descent."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)

    def work(x, y):
        loss = (x @ weight - y).square().mean()
        loss.backward()
        return loss.detach().clone()

    run, losses = wrap(work, [weight]), []
    for _ in range(steps):
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        losses.append(run(x, x.sum(1, keepdim=True)))
        with torch.no_grad():
            weight -= 0.1 * weight.grad
        weight.grad = None
    return torch.stack(losses), weight.detach()


@pytest.mark.parametrize("seconds", [0.0, 0.05], ids=["replay faster or equal", "replay slower"])
def test_replayed_steps_give_the_numbers_of_launched_ones(seconds):
    recorders, wrapped = [], []

    def wrap(work, parameters):
        recorders.append(HostRecorder(parameters, seconds))
        wrapped.append(Replayed(work, parameters, recorders[0]))
        return wrapped[0]

    for found, expected in zip(training(12, wrap), training(12, lambda work, _: work), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert wrapped[0].settled in ("launched", "replayed")
    if seconds:
        assert wrapped[0].settled == "launched"
    if wrapped[0].settled == "launched":
        assert recorders[0].replays == 2  # the call that recorded, and the one that was timed
    else:
        assert recorders[0].replays == 12 - WARM_UP - 1


def test_work_that_cannot_be_recorded_goes_on_with_a_warning():
    class Refuses(HostRecorder):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.warns(UserWarning, match="not recorded as a CUDA graph: operation not permitted"):
        found = training(8, lambda work, parameters: Replayed(work, parameters, Refuses(parameters)))
    for value, expected in zip(found, training(8, lambda work, _: work), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
