"""Claims on recorded training steps: the same numbers as launched ones, by a recorder that needs no GPU."""

import time
from contextlib import nullcontext

import pytest
import torch
from planted import DEFAULTS, PlantedTask
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ablations import studies
from ablations.design import one_factor_at_a_time
from ablations.graphs import WARM_UP, Replayed
from ablations.records import Configuration
from ablations.training import Ensemble, fresh_model


class HostRecorder:
    """Records by keeping the work, which changes `state`: a replay does it again, into the place of its result."""

    def __init__(self, state, seconds=0.0):
        self.state, self.seconds, self.replays = state, seconds, 0

    def warm_up(self, work):
        return work()

    def record(self, work):
        before = [tensor.detach().clone() for tensor in self.state]
        result = work().fill_(torch.nan)  # a GPU only notes it down: nothing is done, and the result must not be used
        with torch.no_grad():
            for tensor, value in zip(self.state, before, strict=True):
                tensor.copy_(value)

        def replay():
            self.replays += 1
            time.sleep(self.seconds)
            result.copy_(work())

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
        with torch.no_grad():
            weight.sub_(0.1 * weight.grad)
        weight.grad = None
        return loss.detach().clone()

    run, losses = wrap(work, [weight]), []
    for _ in range(steps):
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        losses.append(run(x, x.sum(1, keepdim=True)))
    return torch.stack(losses), weight.detach()


@pytest.mark.parametrize("seconds", [0.0, 0.05], ids=["replay faster or equal", "replay slower"])
def test_replayed_steps_give_the_numbers_of_launched_ones(seconds):
    recorders, wrapped = [], []

    def wrap(work, state):
        recorders.append(HostRecorder(state, seconds))
        wrapped.append(Replayed(work, recorders[0]))
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


def ensemble(**settings):
    settings = {**DEFAULTS, "schedule": "one-cycle", "averaging": 0.9, "dropout": 0.2, **settings}
    return Ensemble([Configuration("planted", "1", "1", "quick", settings, {}, seed) for seed in range(3)], PlantedTask)


def assert_learn_alike(one, other):
    for _ in range(4):
        for batch, same in zip(one.batches(), other.batches(), strict=True):
            torch.testing.assert_close(one.step(*batch), other.step(*same), rtol=0, atol=0)
    torch.testing.assert_close(one.predictor(2)._state, other.predictor(2)._state, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_recorded_step_of_an_ensemble_holds_its_optimizer_schedule_and_average(optimizer):
    replayed, launched = ensemble(optimizer=optimizer), ensemble(optimizer=optimizer)
    assert_learn_alike(replayed, launched)  # torch's optimizers make their slots at the first step
    moving, average = replayed._optimizer, replayed._average
    slots = [tensor for kept in moving._of_torch.state.values() for tensor in kept.values()]
    assert slots
    state = [*replayed._parameters.values(), *replayed._buffers.values(), *slots, moving._steps]
    recorder = HostRecorder([*state, *average.values.values(), average._steps])
    replayed._replayed = Replayed(replayed._step, recorder)
    assert_learn_alike(replayed, launched)
    assert recorder.replays >= 2


def test_a_recording_that_fails_half_way_leaves_the_ensemble_as_it_was():
    class FailsHalfWay(HostRecorder):
        def record(self, work):
            for parameter in self.state:
                parameter.grad = torch.full_like(parameter, torch.nan)  # noted down, never computed
            raise RuntimeError("operation not permitted when stream is capturing")

    training = ensemble()
    training._replayed = Replayed(training._step, FailsHalfWay(list(training._parameters.values())))
    with pytest.warns(UserWarning, match="not recorded as a CUDA graph"):
        assert_learn_alike(training, ensemble())


def test_work_that_cannot_be_recorded_goes_on_with_a_warning():
    class Refuses(HostRecorder):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.warns(UserWarning, match="not recorded as a CUDA graph: operation not permitted"):
        found = training(8, lambda work, state: Replayed(work, Refuses(state)))
    for value, expected in zip(found, training(8, lambda work, _: work), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


class Elsewhere(TorchDispatchMode):
    """Notes operations on tensors of the CPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        self.found += [str(operation) for tensor in tensors if tensor.device.type == "cpu"]
        return result


@pytest.mark.parametrize(
    "study", [pytest.param(name, marks=[pytest.mark.slow] * (name != "vision")) for name in studies.names()]
)
def test_a_step_of_any_model_needs_nothing_of_another_device(study):
    """Which a CUDA graph cannot copy. Meta tensors stand for those of a GPU."""
    study = studies.load(study)
    levels = {factor.name: tuple(level.name for level in factor.levels) for factor in study.factors}
    for condition in one_factor_at_a_time(study, levels):
        settings = study.settings("smoke", condition)
        if settings.get("algorithm") == "direct":
            continue  # there is no such kernel for meta tensors
        task = study.task(settings, 0)
        model = fresh_model(task, 0).train()
        state = dict(model.named_parameters()) | dict(model.named_buffers())
        state = {name: t.detach().to("meta").requires_grad_(t.requires_grad) for name, t in state.items()}
        inputs, targets = task.train_inputs[:2].to("meta"), task.train_targets[:2].to("meta")
        for mode in nullcontext(), Elsewhere():  # in the first step, as before a recording, constants are made
            with mode:
                task.loss(functional_call(model, state, (inputs,)), targets).backward()
        assert not mode.found, condition
