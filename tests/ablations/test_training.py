"""Claims on training: runs trained together are the runs trained alone, and trouble stays with the run that has it."""

import math
from collections import defaultdict

import pandas as pd
import planted
import pytest
import torch
from planted import PlantedTask

from ablations import devices, studies
from ablations.design import DesignError
from ablations.plan import plan_study
from ablations.records import Configuration, Records
from ablations.training import Ensemble, learn, train


def configuration(seed=0, **settings):
    levels = {"condition": repr(settings)}
    return Configuration("planted", "1", "1", "quick", planted.DEFAULTS | settings, levels, seed)


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path)
    records.declare(planted.STUDY.declaration())
    return records


def learning_curve(records, run, study="planted"):
    curves = records.curves(study)
    return curves[curves.key == run.key].drop(columns=["seconds", "key"]).reset_index(drop=True)


def test_a_run_trained_alone_equals_the_run_trained_in_an_ensemble(tmp_path):
    alone, together = Records(tmp_path / "alone"), Records(tmp_path / "together")
    runs = [
        configuration(seed, jitter=0.1 * seed, learning_rate=0.01 * (seed + 1), clip=clip, dropout=0.1 * seed)
        for seed, clip in enumerate([None, 0.05, 0.5, 1.0])
    ]
    for run in runs:
        train([run], PlantedTask, alone)
    train(runs, PlantedTask, together)
    # float64: what is left is the order of sums, 1e-16 a step over 12 steps
    for run in runs:
        pd.testing.assert_frame_equal(
            learning_curve(alone, run), learning_curve(together, run), rtol=1e-11, check_exact=False
        )
        outputs = [torch.tensor(r.predictions("planted", run.key)["outputs"]) for r in (alone, together)]
        torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", studies.names())
def test_models_of_every_study_learn_in_an_ensemble_as_they_do_alone(name, tmp_path):
    study = studies.load(name)
    runs = plan_study(study, "smoke", [], 2, Records(tmp_path), workers=1).runs[study.baseline]
    together, alone = Ensemble(runs, study.task), Ensemble(runs[1:], study.task)
    for _, ours, theirs in zip(range(3), together.batches(), alone.batches(), strict=False):
        # float32; after a step of Adam, rounding of small gradients shows as well
        torch.testing.assert_close(together.step(*ours)[1], alone.step(*theirs)[0], rtol=1e-5, atol=0)


def test_a_device_that_cannot_be_had_is_refused_by_name(monkeypatch):
    assert devices.device() == torch.device("cpu")
    monkeypatch.setenv("ABLATE_DEVICE", "tpu")
    with pytest.raises(DesignError, match="ABLATE_DEVICE=tpu is unknown; allowed: cpu, cuda"):
        devices.device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ABLATE_DEVICE", "cuda")
    with pytest.raises(DesignError, match="can use no GPU here; leave it out for the CPU"):
        devices.device()


def test_an_ensemble_equals_a_plain_training_loop():
    run = configuration(clip=0.05, batch_size=70)
    ensemble = Ensemble([run], PlantedTask)
    task, model = ensemble.tasks[0], ensemble.tasks[0].model()
    model.load_state_dict({n: t[0].detach().clone() for n, t in (ensemble._parameters | ensemble._buffers).items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=run.settings["learning_rate"])
    for _ in range(5):
        for inputs, targets in ensemble.batches():
            loss = ensemble.step(inputs, targets)
            plain_loss = task.loss(model(inputs[0]), targets[0])
            optimizer.zero_grad()
            plain_loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.settings["clip"])
            optimizer.step()
            torch.testing.assert_close(loss[0], plain_loss.detach(), rtol=1e-6, atol=0)
    inputs = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(ensemble.predictor(0)(inputs), model.eval()(inputs).detach(), rtol=1e-6, atol=0)


def test_gradients_are_clipped_for_each_model_by_itself():
    from ablations.training import _clip

    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0], [3.0, 0.0]]), torch.tensor([[[4.0]], [[0.4]], [[4.0]]])]
    _clip(gradients, torch.tensor([1.0, 1.0, torch.inf]))
    norms = torch.stack([g.reshape(3, -1).square().sum(1) for g in gradients]).sum(0).sqrt()
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.5, 5.0]))


def in_double(task_type):
    """The task with models in float64, where no rounding turns a maximum or the sign of what Adam divides."""

    def task(settings, seed):
        made = task_type(settings, seed)
        single = made.model

        def model():
            double = single().double()
            double.register_forward_pre_hook(lambda module, inputs: tuple(each.double() for each in inputs))
            return double

        made.model = model
        return made

    return task


@pytest.mark.parametrize("name", studies.names())
def test_results_of_the_studies_are_the_same_numbers_alone_and_in_an_ensemble(name, records):
    study = studies.load(name)
    runs = plan_study(study, "smoke", [], 3, records, workers=1).runs[study.baseline]
    together, _ = learn(Ensemble(runs, in_double(study.task)), lambda epoch, epochs, rows: None)
    alone, _ = learn(Ensemble(runs[2:], in_double(study.task)), lambda epoch, epochs, rows: None)
    one, other = (pd.DataFrame(curve).drop(columns="seconds") for curve in (alone[0], together[2]))
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_averaged_weights_are_what_is_validated_and_evaluated():
    run = configuration(averaging=0.9, schedule="one-cycle", optimizer="sgd", learning_rate=0.001)
    ensemble = Ensemble([run], PlantedTask)
    seen = []
    for inputs, targets in ensemble.batches():
        ensemble.step(inputs, targets)
        seen.append({name: tensor[0].detach().clone() for name, tensor in ensemble._parameters.items()})
    state = {n: t[0].detach().clone() for n, t in Ensemble([run], PlantedTask)._parameters.items()}
    for step, weights in enumerate(seen, 1):
        decay = min(0.9, (1 + step) / (10 + step))
        state = {name: decay * old + (1 - decay) * weights[name] for name, old in state.items()}
    module = ensemble.predictor(0).module()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), state[name])
    inputs = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(ensemble.predictor(0)(inputs), module(inputs).detach())


def test_the_record_says_what_runs_of_one_seed_share(records):
    runs = [
        configuration(0),
        configuration(0, learning_rate=0.1, jitter=0.5),
        configuration(0, width=8),
        configuration(1),
    ]
    for run in runs:
        train([run], PlantedTask, records)
    table = records.table().set_index("key")
    base, rate, wide, other_seed = (table.loc[run.key].filter(like="pairing_") for run in runs)
    assert base.index.tolist() == [f"pairing_{what}" for what in ("augmentation", "order", "split", "weights")]
    assert base.equals(rate)
    assert (base == wide).tolist() == [True, True, True, False]
    assert not (base == other_seed).any()


@pytest.mark.parametrize("name", studies.names())
def test_every_condition_on_the_same_data_is_paired_by_seed(name, tmp_path):
    study = studies.load(name)
    plan = plan_study(study, "smoke", [], 2, Records(tmp_path), workers=1)
    makes_data = ("channels", "kernel", "size", "batch_size") if name == "convolution" else ()
    for of_seed in zip(*plan.runs.values(), strict=True):
        pairings = defaultdict(list)
        for run in of_seed:
            pairings[tuple(run.settings[key] for key in makes_data)].append(Ensemble([run], study.task).pairing(0))
        for on_same_data in pairings.values():
            assert len(on_same_data) > 1
            for what in ("split", "order", "augmentation"):
                assert len({pairing[what] for pairing in on_same_data}) == 1, what


def test_a_run_that_another_process_owns_is_left_to_it(records):
    runs = [configuration(0), configuration(1)]
    with records.claim(runs[:1]):
        assert train(runs, PlantedTask, records) == ["elsewhere", "done"]
    assert records.status(runs[0]) is None


def test_the_same_seed_gives_the_same_order_augmentation_and_weights_in_every_condition():
    one = Ensemble([configuration(5, jitter=0.1)], PlantedTask)
    other = Ensemble([configuration(5, jitter=0.1, learning_rate=0.5), configuration(6, jitter=0.1)], PlantedTask)
    for (inputs, targets), (other_inputs, other_targets) in zip(one.batches(), other.batches(), strict=True):
        assert torch.equal(inputs[0], other_inputs[0])
        assert torch.equal(targets[0], other_targets[0])
        assert not torch.equal(inputs[0], other_inputs[1])
    rows = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(one.predictor(0)(rows), other.predictor(0)(rows))


def test_a_run_that_diverges_is_recorded_and_leaves_the_others_unharmed(records, tmp_path):
    clean = Records(tmp_path / "clean")
    settings = {"spoil_for": [1]}
    runs = [configuration(seed, **settings) for seed in range(3)]
    assert train(runs, PlantedTask, records) == ["done", "diverged", "done"]
    train([runs[0]], PlantedTask, clean)
    table = records.table().set_index("seed")
    assert "epoch 1, step" in table.message[1]
    assert math.isnan(table.error[1])
    pd.testing.assert_frame_equal(learning_curve(clean, runs[0]), learning_curve(records, runs[0]), rtol=1e-11)


def test_a_run_that_raises_is_on_record_with_its_traceback_and_the_others_are_done(records):
    runs = [configuration(seed, raise_for=[1]) for seed in range(4)]
    assert train(runs, PlantedTask, records) == ["done", "failed", "done", "done"]
    table = records.table().set_index("seed")
    assert "RuntimeError: planted failure of seed 1" in table.message[1]
    assert not records.is_finished(runs[1])


def test_when_memory_does_not_suffice_the_ensemble_halves_and_goes_on(tmp_path, monkeypatch):
    whole, halved = Records(tmp_path / "whole"), Records(tmp_path / "halved")
    runs = [configuration(seed) for seed in range(4)]
    train(runs, PlantedTask, whole)
    step, sizes = Ensemble.step, []

    def little_memory(self, inputs, targets):
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise MemoryError
        return step(self, inputs, targets)

    monkeypatch.setattr(Ensemble, "step", little_memory)
    assert train(runs, PlantedTask, halved) == ["done"] * 4
    assert sizes[0] == 4
    assert set(sizes[1:]) == {2}
    pd.testing.assert_frame_equal(whole.table(), halved.table(), rtol=1e-11)


def test_an_evaluation_that_raises_costs_its_own_run_only(records):
    runs = [configuration(seed, fail_evaluation_for=[1]) for seed in range(3)]
    assert train(runs, PlantedTask, records) == ["done", "failed", "done"]


def test_epochs_to_converge_is_the_first_within_five_percent_of_the_lowest():
    from ablations.training import _epochs_to_converge

    rows = [{"epoch": epoch, "validation_loss": loss} for epoch, loss in enumerate([2.0, 1.04, 1.0, 1.2], start=1)]
    assert _epochs_to_converge(rows) == 2


def test_a_record_says_where_it_was_made(records):
    run = configuration()
    train([run], PlantedTask, records)
    environment = records.environment("planted", run.key)
    assert environment["torch"] == torch.__version__
    assert {"recurve", "python", "platform", "cpu", "threads", "commit", "date"} <= environment.keys()


def test_runs_of_unlike_data_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        Ensemble([configuration(0), configuration(1, rows=50)], _Rowwise)


class _Rowwise(PlantedTask):
    def __init__(self, settings, seed):
        super().__init__(settings | {"rows": 50 + seed}, seed)
