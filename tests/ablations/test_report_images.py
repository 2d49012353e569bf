"""Claims on figures of images: each shows what the runs it names left, and nothing where they left none."""

import numpy as np
import pandas as pd
import pytest

from ablations.gabor import gabor_bank
from ablations.report import figures
from ablations.report.evidence import Evidence
from ablations.report.figures.drawings import STUDY_FIGURES
from ablations.report.figures.images import most_moving
from ablations.report.published import published

PIXELS = np.array([-2, 0, 2])
LEVELS = [("none", "3", "learned"), ("shift-3", "3", "learned"), ("none", "7", "learned"), ("none", "3", "gabor")]


def arrays_of(augmentation, kernel_size, first_layer, seed):
    """Shifts matter less with augmentation; kernels are Gabor functions of the level's size."""
    drop = 0.1 if augmentation == "shift-3" else 0.4
    side = 9 if first_layer == "gabor" else int(kernel_size)
    images = np.full((8, 1, 28, 28), 10 * seed + (augmentation == "shift-3"), np.uint8)
    return {
        "data": np.array("mnist"),
        "label": np.array([0, 0, 1, 1], np.uint8),
        "predicted": np.array([0, 2 if seed else 0, 1, 1], np.uint8),
        "shift_pixels": PIXELS,
        "shift_map": 0.9 - drop * np.abs(PIXELS[:, None] / 2) - 0.01 * seed * np.ones((3, 3)),
        "equivariance_errors": np.array([0.1, 0.2 + 0.02 * seed]),
        "first_kernels": gabor_bank(8, 2, side).astype(np.float32),
        "augmented": images,
    }


@pytest.fixture
def evidence():
    rows, left = [], {}
    for seed in (0, 1):
        for k, (augmentation, kernel_size, first_layer) in enumerate(LEVELS):
            key = f"{seed}{k}"
            left[key] = arrays_of(augmentation, kernel_size, first_layer, seed)
            levels = {"augmentation": augmentation, "kernel_size": kernel_size, "first_layer": first_layer}
            rows.append({"key": key, "seed": seed, "status": "done", "accuracy": 0.9, "parameters": 1000 + k} | levels)
    runs = pd.DataFrame(rows)
    baseline = {"augmentation": "none", "kernel_size": "3", "first_layer": "learned"}
    declaration = figures.declare(runs, "accuracy", baseline, unit="%", costs=["parameters"])
    return Evidence("own", "quick", declaration, runs, pd.DataFrame(), pd.DataFrame(), lambda key, names: left[key], {})


@pytest.mark.parametrize("name", ["shift_maps", "equivariance", "augmentations", "kernels", "confusion"])
def test_figures_are_drawn_and_their_code_draws_them_again(evidence, name):
    drawing = STUDY_FIGURES[name](evidence)
    assert drawing.figure.axes
    again = eval(drawing.code, {"figures": figures, "evidence": evidence})
    assert len(again.axes) == len(drawing.figure.axes)


def test_equivariance_errors_are_told_by_layer(evidence):
    table = figures.equivariance_table(evidence)
    assert len(table) == 2 * len(evidence.done)
    assert table.groupby("layer")["error"].mean().tolist() == pytest.approx([0.1, 0.21])


@pytest.mark.parametrize("name", ["shift_maps", "equivariance", "augmentations", "kernels", "confusion"])
def test_runs_that_left_nothing_are_not_drawn(evidence, name):
    bare = Evidence(**{**vars(evidence), "predictions": lambda key, names: {}})
    assert STUDY_FIGURES[name](bare) is None


def test_the_shift_map_is_of_the_factor_that_moves_it_and_holds_means_over_seeds(evidence):
    table = figures.shift_map_table(evidence)
    assert most_moving(table, evidence) == "augmentation"
    figure = figures.shift_maps(table, evidence.declaration, "augmentation")
    titles = {axes.get_title("left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(titles) == ["augmentation: none", "augmentation: shift-3"]
    cells = [text.get_text() for text in titles["augmentation: shift-3"].texts]
    assert cells == [
        "80",
        "80",
        "80",
        "90",
        "90",
        "90",
        "80",
        "80",
        "80",
    ]  # rows are shifts down; 79.5 and 89.5 rounded


def test_samples_are_of_the_lowest_seed_by_level(evidence):
    samples = figures.augmented_images(evidence)
    assert {name: int(images.max()) for name, images in samples.items()} == {"none": 0, "shift-3": 1}


def test_kernels_are_the_widest_of_those_learned_and_a_fit_explains_them(evidence):
    condition, learned = figures.widest_kernels(evidence)
    assert (condition, learned.shape) == ("kernel_size 7", (8, 2, 7, 7))
    fits = figures.gabor_fits(learned)
    assert min(explained for _, explained in fits) > 0.99
    assert figures.gabor_fits(learned[..., :3, :3]) == []


def test_confusion_counts_the_baselines_answers_over_seeds(evidence):
    np.testing.assert_array_equal(figures.confusion_counts(evidence), [[3, 0, 1], [0, 4, 0], [0, 0, 0]])


def test_published_points_are_those_of_the_data_and_are_cited(evidence):
    assert list(figures.published_points(evidence)["name"]) == ["LeNet-1", "LeNet-4", "LeNet-5"]
    assert published("imagenet").empty
    axes = figures.tradeoff(evidence.done, evidence.declaration, published=published("mnist")).axes[0]
    assert {"LeNet-1", "LeNet-4", "LeNet-5"} <= {text.get_text() for text in axes.texts}
    assert axes.get_xlim()[1] > 60_000
