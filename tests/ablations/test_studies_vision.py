"""Claims on the vision study: its parts never overlap, and accuracy and consistency are what they say."""

import numpy as np
import pytest
import torch

from ablations.data.augmentation import shift
from ablations.data.images import load
from ablations.design import one_factor_at_a_time
from ablations.studies.vision import SHIFTS, STUDY, VisionTask, consistency_offsets

CONDITIONS = one_factor_at_a_time(STUDY, {f.name: [level.name for level in f.levels] for f in STUDY.factors})


def settings(**chosen):
    return STUDY.settings("smoke", STUDY.baseline) | chosen


@pytest.mark.parametrize("condition", CONDITIONS)
def test_same_seed_gives_the_same_split_in_every_condition(condition):
    baseline, other = (VisionTask(STUDY.settings("smoke", c), seed=3) for c in (STUDY.baseline, condition))
    assert torch.equal(baseline.train_inputs, other.train_inputs)
    assert torch.equal(baseline.train_targets, other.train_targets)
    assert torch.equal(baseline.validation.images, other.validation.images)


def test_another_seed_gives_another_split():
    one, other = (VisionTask(settings(), seed) for seed in (1, 2))
    assert not torch.equal(one.train_inputs, other.train_inputs)


def test_no_test_image_is_trained_on():
    task = VisionTask(settings(train_images=50_000, validation_images=10_000, test_images=10_000), seed=0)
    seen = {image.numpy().tobytes() for image in torch.cat([task.train_inputs, task.validation.images])}
    assert len(task.train_inputs) + len(task.validation) == 60_000
    assert not any(image.numpy().tobytes() in seen for image in task.test.images)


def labels_of(task):
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(task.test.images, task.test.labels, strict=True)
    }

    def predict(images):
        answers = [known.get(image.numpy().tobytes(), 0) for image in images]
        return torch.nn.functional.one_hot(torch.tensor(answers), 10).float()

    return predict


def test_accuracy_counts_right_answers_and_consistency_counts_answers_kept():
    task = VisionTask(settings(), seed=0)
    responses, arrays = task.evaluate(labels_of(task))  # knows each test image, calls every shifted one a zero
    zeros = float((task.test.labels == 0).double().mean())
    assert responses == pytest.approx({"accuracy": 1, "shift_consistency": zeros})
    np.testing.assert_array_equal(arrays["label"], arrays["predicted"])
    assert arrays["shift_accuracy"][SHIFTS == 0] == 1
    subset = float((task.test.labels[: settings()["shifted_images"]] == 0).double().mean())
    np.testing.assert_allclose(arrays["shift_accuracy"][SHIFTS != 0], subset, rtol=1e-6)


def test_a_network_blind_to_place_is_fully_consistent():
    task = VisionTask(settings(), seed=0)

    def ink(images):
        return torch.nn.functional.one_hot((images.sum((1, 2, 3)) / 40).long().clamp(max=9), 10).float()

    inside = shift(shift(task.test.images, torch.full((500, 2), 3)), torch.full((500, 2), -6))
    inside = shift(inside, torch.full((500, 2), 3))  # keeps what stays in the frame under every shift
    task.test = type(task.test)(inside, task.test.labels)
    assert task.evaluate(ink)[0]["shift_consistency"] > 0.99  # sums in another order may round over a boundary


def test_consistency_shifts_cover_all_offsets_but_none_and_are_always_the_same():
    offsets = consistency_offsets(10_000)
    assert torch.equal(offsets, consistency_offsets(10_000))
    drawn = {tuple(offset) for offset in offsets.tolist()}
    assert drawn == {(x, y) for x in range(-3, 4) for y in range(-3, 4)} - {(0, 0)}


def test_arrays_are_one_answer_per_test_image_and_an_accuracy_per_shift():
    task = VisionTask(settings(), seed=0)
    _, arrays = task.evaluate(labels_of(task))
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "label": ((500,), "uint8"),
        "predicted": ((500,), "uint8"),
        "shift_pixels": ((13,), "int8"),
        "shift_accuracy": ((13,), "float32"),
    }


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_trains_the_model_that_it_names(condition):
    chosen = dict(condition.levels)
    task = VisionTask(STUDY.settings("smoke", condition), seed=0)
    model = task.model()
    assert len(model.blocks) == int(chosen["depth"])
    inputs = task.augment(task.train_inputs[:8], torch.Generator().manual_seed(0))
    assert torch.equal(inputs, task.train_inputs[:8]) == (chosen["augmentation"] == "none")
    assert torch.isfinite(task.loss(model(inputs), task.train_targets[:8]))


def test_smoke_uses_the_first_images_of_the_test_part():
    assert torch.equal(VisionTask(settings(), seed=5).test.images, load("mnist", "test")[:500].scaled().images)
