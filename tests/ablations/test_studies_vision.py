"""Claims on the studies on images: parts never overlap, conditions are what they say, and known answers come out."""

import numpy as np
import pytest
import torch

from ablations import studies
from ablations.classification import SHIFTS, ImageTask
from ablations.data.augmentation import shift
from ablations.data.images import FASHION_MNIST, load
from ablations.design import choose_levels, listed, one_factor_at_a_time
from ablations.plan import plan_study
from ablations.records import Records
from ablations.studies.compact import STUDY as COMPACT
from ablations.studies.vision import STUDY
from ablations.training import train

CONDITIONS = one_factor_at_a_time(STUDY, {f.name: [level.name for level in f.levels] for f in STUDY.factors})


def settings(**chosen):
    return STUDY.settings("smoke", STUDY.baseline) | chosen


@pytest.mark.parametrize("condition", CONDITIONS)
def test_same_seed_gives_the_same_split_in_every_condition(condition):
    baseline, other = (ImageTask(STUDY.settings("smoke", c), seed=3) for c in (STUDY.baseline, condition))
    assert torch.equal(baseline.train_inputs, other.train_inputs)
    assert torch.equal(baseline.train_targets, other.train_targets)
    assert torch.equal(baseline.validation.images, other.validation.images)


def test_another_seed_gives_another_split():
    one, other = (ImageTask(settings(), seed) for seed in (1, 2))
    assert not torch.equal(one.train_inputs, other.train_inputs)


def test_no_test_image_is_trained_on():
    task = ImageTask(settings(train_images=50_000, validation_images=10_000, test_images=10_000), seed=0)
    seen = {image.numpy().tobytes() for image in torch.cat([task.train_inputs, task.validation.images])}
    assert len(task.train_inputs) + len(task.validation) == 60_000
    assert not any(image.numpy().tobytes() in seen for image in task.test.images)


def predictor(task, answer):
    """An answer to images as a trained model, whose layers are those of a fresh network."""

    class Fixed:
        def __call__(self, images):
            return answer(images)

        def module(self):
            return task.model().eval()

    return Fixed()


def labels_of(task):
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(task.test.images, task.test.labels, strict=True)
    }

    def answer(images):
        answers = [known.get(image.numpy().tobytes(), 0) for image in images]
        return torch.nn.functional.one_hot(torch.tensor(answers), 10).float()

    return predictor(task, answer)


def test_accuracy_counts_right_answers_and_consistency_counts_answers_kept():
    task = ImageTask(settings(), seed=0)
    responses, arrays = task.evaluate(labels_of(task))  # knows each test image, calls every shifted one a zero
    zeros = float((task.test.labels[: settings()["shifted_images"]] == 0).double().mean())
    assert responses["accuracy"] == 1
    assert responses["shift_consistency"] == pytest.approx(zeros)
    assert responses["shifted_accuracy"] == pytest.approx((1 + 48 * zeros) / 49)
    np.testing.assert_array_equal(arrays["label"], arrays["predicted"])
    np.testing.assert_allclose(arrays["shift_accuracy"], np.where(SHIFTS == 0, 1, zeros), rtol=1e-6)
    np.testing.assert_allclose(np.delete(arrays["shift_map"].ravel(), 24), zeros, rtol=1e-6)


def test_rows_of_the_shift_map_are_shifts_down_and_columns_to_the_right():
    task = ImageTask(settings(), seed=0)
    originals = task.test.images[: settings()["shifted_images"]]
    moved = shift(originals, torch.tensor([[4, -2]]).expand(len(originals), 2))

    def only_so_moved(images):
        right = len(images) == len(moved) and torch.equal(images, moved)
        labels = task.test.labels[: len(images)] if right else torch.full((len(images),), 10)
        return torch.nn.functional.one_hot(labels, 11).float()

    accuracy = task.evaluate(predictor(task, only_so_moved))[1]["shift_map"]
    assert {(int(SHIFTS[row]), int(SHIFTS[column])) for row, column in zip(*accuracy.nonzero(), strict=True)} == {
        (-2, 4)
    }


def test_a_network_blind_to_place_is_fully_consistent():
    task = ImageTask(settings(), seed=0)

    def ink(images):
        return torch.nn.functional.one_hot((images.sum((1, 2, 3)) / 40).long().clamp(max=9), 10).float()

    kept = torch.zeros_like(task.test.images)
    kept[..., 6:-6, 6:-6] = task.test.images[..., 6:-6, 6:-6]  # stays in the frame under every shift
    task.test = type(task.test)(kept, task.test.labels)
    assert task.evaluate(predictor(task, ink))[0]["shift_consistency"] > 0.99  # sums may round over a boundary


def test_arrays_are_what_the_figures_need():
    task = ImageTask(settings(augmentation="shift-3"), seed=0)
    _, arrays = task.evaluate(labels_of(task))
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "data": ((), "<U5"),
        "repaired": ((0,), "<U1"),
        "label": ((500,), "uint8"),
        "predicted": ((500,), "uint8"),
        "shift_pixels": ((7,), "int8"),
        "shift_accuracy": ((7,), "float32"),
        "shift_map": ((7, 7), "float32"),
        "equivariance_errors": ((2,), "float32"),
        "first_kernels": ((8, 1, 3, 3), "float32"),
        "originals": ((8, 1, 28, 28), "uint8"),
        "augmented": ((8, 1, 28, 28), "uint8"),
    }


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_trains_the_model_that_it_names(condition):
    chosen = dict(condition.levels)
    task = ImageTask(STUDY.settings("smoke", condition), seed=0)
    model = task.model()
    assert len(model.layers) == int(chosen["depth"])
    assert model.first_kernels().shape == (int(chosen["width"]), 1, *[int(chosen["kernel_size"])] * 2)
    assert all(layer.style.padding == chosen["padding"] for layer in model.layers)
    assert model.layers[0].pooling == chosen["pooling"]
    assert model.head[-2].probability == float(chosen["dropout"])
    inputs = task.augment(task.train_inputs[:8], torch.Generator().manual_seed(0))
    assert torch.equal(inputs, task.train_inputs[:8]) == (chosen["augmentation"] == "none")
    assert torch.isfinite(task.loss(model(inputs), task.train_targets[:8]))


def test_conditions_of_one_shape_train_in_one_ensemble(tmp_path):
    words = ["augmentation=shift-3,noise-0.2", "dropout=0.5", "learning_rate=0.02"]
    plan = plan_study(STUDY, "quick", words, 2, Records(tmp_path), workers=1)
    assert [len(job.configurations) for job in plan.jobs] == [10]


def test_any_strength_of_an_augmentation_may_be_named():
    assert choose_levels(STUDY, ["augmentation=shift-5,none"]) == {"augmentation": ("shift-5", "none")}
    (_, far) = listed(STUDY, ["augmentation=rotate-7.5"])
    assert STUDY.settings("quick", far)["augmentation"] == "rotate-7.5"


def test_smoke_uses_the_first_images_of_the_test_part():
    assert torch.equal(ImageTask(settings(), seed=5).test.images, load("mnist", "test")[:500].scaled().images)


def test_the_number_of_colours_and_classes_is_that_of_the_data(monkeypatch):
    from ablations.data import images

    def colours(part):
        labels = np.arange(60, dtype=np.uint8) % 3
        return np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8), labels

    monkeypatch.setattr(images, "READERS", {"colours": colours})
    task = ImageTask(settings(data="colours", train_images=30, validation_images=10, test_images=20), seed=0)
    assert task.model()(task.train_inputs).shape == (30, 3)
    assert np.isfinite(task.evaluate(predictor(task, task.model().eval()))[0]["equivariance_error"])


def accuracies(tmp_path, words, seeds):
    """Test accuracy and consistency of quick runs, a row per run."""
    records = Records(tmp_path)
    plan = plan_study(STUDY, "quick epochs=3 test_images=2000", words, seeds, records, workers=1, design="list")
    for job in plan.jobs:
        train(job.configurations, job.task, records)
    return records.table().set_index(["seed"]).sort_index()


@pytest.mark.slow
def test_flips_hurt_digits_and_shifts_help_against_shifts(tmp_path):
    table = accuracies(tmp_path, ["augmentation=flip-0.5", "augmentation=shift-3"], seeds=4)
    assert (table["status"] == "done").all()
    none, flip, moved = (table[table["augmentation"] == name] for name in ("none", "flip-0.5", "shift-3"))
    assert ((none["accuracy"] - flip["accuracy"]) > 0.01).all()
    assert ((moved["shift_consistency"] - none["shift_consistency"]) > 0.02).all()


@pytest.mark.slow
def test_a_trained_joined_stride_1_network_with_global_average_pooling_keeps_nearly_every_answer(tmp_path):
    table = accuracies(
        tmp_path,
        ["padding=circular+pooling=none+head=gap+normalisation=batch+kernel_size=7+learning_rate=0.02"],
        seeds=1,
    )
    blind = table[table["padding"] == "circular"].iloc[0]
    assert blind["accuracy"] > 0.3  # it has learnt something
    assert blind["equivariance_error"] < 1e-4
    assert blind["shift_consistency"] > 0.97  # shifts by zeros cut off a stroke here and there


@pytest.mark.parametrize("level", COMPACT.factor("network").levels, ids=lambda level: level.name)
def test_named_networks_have_as_few_parameters_as_they_say(level):
    (condition,) = [
        c for c in one_factor_at_a_time(COMPACT, {"network": [level.name]}) if dict(c.levels)["network"] == level.name
    ]
    network = ImageTask(COMPACT.settings("smoke", condition), seed=0).model()
    limit = 1000 * int(level.name.removesuffix("k"))
    assert 0.7 * limit < sum(parameter.numel() for parameter in network.parameters()) <= limit


def test_the_presets_of_known_answers_train_these_networks_alone(tmp_path):
    assert "compact" in studies.names()
    for preset, name in (("mnist", "8k"), ("fashion", "100k")):
        assert len(plan_study(COMPACT, preset, [f"network={name}"], None, Records(tmp_path), workers=1).runs) == 2
        runs = plan_study(COMPACT, preset, [], None, Records(tmp_path), workers=1).runs
        assert [dict(condition.levels)["network"] for condition in runs] == ["2k", name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "network", "accuracy"), [("mnist", "2k", 0.988), ("mnist", "8k", 0.993), ("fashion", "100k", 0.92)]
)
def test_named_networks_read_as_many_test_images_as_is_said_of_them(tmp_path, preset, network, accuracy):
    if preset == "fashion" and not any(folder.is_dir() for folder in FASHION_MNIST.folders):
        pytest.skip("Fashion-MNIST is not on this machine")
    records = Records(tmp_path)
    (job,) = plan_study(COMPACT, preset, [f"network={network}"], 1, records, workers=1, design="list").jobs[-1:]
    train(job.configurations, job.task, records)
    table = records.table()
    assert table["network"].tolist() == [network]
    assert table["accuracy"].iloc[0] >= accuracy
