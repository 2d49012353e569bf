"""What makes a small convolutional network accurate for its size, and how well does it stand translation?"""

from __future__ import annotations

from typing import Any

from ablations.classification import RESPONSES, SMOKE, ImageTask
from ablations.design import Expectation, Expected, Factor, Hypothesis, Level, Preset, Study

MATTERS = 0.005  # half a percentage point: one digit in 200


STEADIER = (Expectation("shift_consistency", "better", 0.02),)  # two answers in a hundred
LESS_STEADY = (Expectation("shift_consistency", "worse", 0.02),)


def _level(
    name: str,
    settings: dict[str, Any],
    trying: str,
    expects: Expected,
    because: str,
    also: tuple[Expectation, ...] = (),
) -> Level:
    return Level(name, settings, Hypothesis(trying, because, expects, MATTERS, also))


def _augmentation(name: str, trying: str, expects: Expected, because: str, also: tuple[Expectation, ...] = ()) -> Level:
    return _level(name, {"augmentation": name}, f"training images {trying}", expects, because, also)


FACTORS = (
    Factor(
        "augmentation",
        "augmentation in training",
        (
            Level("none", {"augmentation": "none"}),
            _augmentation(
                "shift-1",
                "shifted by up to 1 pixel",
                "better",
                "a stroke that is one pixel off is the same stroke, and a few thousand digits do not show both",
            ),
            _augmentation(
                "shift-3",
                "shifted by up to 3 pixels",
                "better",
                "a few thousand digits do not show every place where a stroke may lie",
                STEADIER,
            ),
            _augmentation(
                "shift-6",
                "shifted by up to 6 pixels",
                "worse",
                "test digits are centred, so that most of what is learnt is of places where none lies",
                STEADIER,
            ),
            _augmentation(
                "rotate-15", "turned by up to 15 degrees", "better", "people slant their digits by about as much"
            ),
            _augmentation(
                "rotate-45",
                "turned by up to 45 degrees",
                "worse",
                "nobody slants so far, and a turned 7 looks like a 2",
            ),
            _augmentation(
                "scale-0.2",
                "made up to 20 % larger or smaller",
                "better",
                "digits were scaled to one box, which thin and thick ones fill differently",
            ),
            _augmentation(
                "flip-0.5",
                "mirrored left to right half of the time",
                "worse",
                "a mirrored digit is no digit, so that half of what is learnt is wasted",
            ),
            _augmentation(
                "erase-8",
                "with a square of 8 x 8 pixels erased",
                "equal",
                "it forbids to rely on one stroke, but most digits hang on one",
            ),
            _augmentation(
                "noise-0.2",
                "with noise of a deviation of 0.2 on each pixel",
                "equal",
                "test images have no noise, and averaging over 3 x 3 pixels removes most of it",
            ),
        ),
    ),
    Factor(
        "depth",
        "convolution blocks",
        (
            Level("2", {"depth": 2}),
            _level(
                "1",
                {"depth": 1},
                "one convolution block in place of two",
                "worse",
                "strokes and corners are seen, but not yet how they join",
            ),
            _level(
                "3",
                {"depth": 3},
                "three convolution blocks in place of two",
                "better",
                "one more block sees half of the digit at once",
            ),
        ),
    ),
    Factor(
        "width",
        "channels of the first block",
        (
            Level("8", {"width": 8}),
            _level(
                "4", {"width": 4}, "half as many channels", "worse", "four kernels cannot see strokes in all directions"
            ),
            _level(
                "16",
                {"width": 16},
                "twice as many channels",
                "better",
                "more kinds of strokes can be told apart, though the first eight matter most",
            ),
        ),
    ),
    Factor(
        "kernel_size",
        "kernel size",
        (
            Level("3", {"kernel_size": 3}),
            _level(
                "5",
                {"kernel_size": 5},
                "kernels of 5 x 5 in place of 3 x 3",
                "better",
                "two blocks then see a curve as a whole",
            ),
            _level(
                "7",
                {"kernel_size": 7},
                "kernels of 7 x 7 in place of 3 x 3",
                "better",
                "a stroke is three pixels wide, so that small kernels see only its edges",
            ),
        ),
    ),
    Factor(
        "pooling",
        "pooling",
        (
            Level("max", {"pooling": "max"}),
            _level(
                "average",
                {"pooling": "average"},
                "average in place of max pooling",
                "worse",
                "a thin stroke is diluted by the blank beside it",
            ),
            _level(
                "strided",
                {"pooling": "strided"},
                "convolutions that skip every other place in place of pooling",
                "worse",
                "what lies between the places is seen by fewer kernels",
                LESS_STEADY,
            ),
            _level(
                "blurred",
                {"pooling": "blurred"},
                "a blur before every other place is kept",
                "equal",
                "it steadies answers under shifts, while centred test digits do not move",
                STEADIER,
            ),
            _level(
                "none",
                {"pooling": "none"},
                "no pooling",
                "worse",
                "the dense head then has 16 times as many weights to learn from the same digits",
            ),
        ),
    ),
    Factor(
        "padding",
        "padding",
        (
            Level("zero", {"padding": "zero"}),
            _level(
                "circular",
                {"padding": "circular"},
                "joined edges in place of zeros around the image",
                "equal",
                "digits have a blank margin, so that opposite edges look like zeros",
            ),
        ),
    ),
    Factor(
        "head",
        "head",
        (
            Level("dense", {"head": "dense"}),
            _level(
                "small",
                {"head": "small"},
                "a single linear layer in place of the dense head",
                "equal",
                "the features are nearly linearly separable, and most parameters sit in the dense head",
            ),
            _level(
                "gap",
                {"head": "gap"},
                "global average pooling in place of the dense head",
                "worse",
                "it forgets where a stroke was, which helps against shifts but loses the digit's shape",
                STEADIER,
            ),
        ),
    ),
    Factor(
        "residual",
        "residual connections",
        (
            Level("no", {"residual": False}),
            _level(
                "yes",
                {"residual": True},
                "a residual connection around the second block",
                "equal",
                "gradients reach two layers well enough without",
            ),
        ),
    ),
    Factor(
        "separable",
        "depthwise-separable convolution",
        (
            Level("no", {"separable": False}),
            _level(
                "yes",
                {"separable": True},
                "a depthwise-separable second block",
                "worse",
                "it has a sixth of the weights, and cannot combine places and channels freely",
            ),
        ),
    ),
    Factor(
        "normalisation",
        "normalisation",
        (
            Level("none", {"normalisation": "none"}),
            _level(
                "batch",
                {"normalisation": "batch"},
                "batch normalisation",
                "better",
                "it speeds up learning, and epochs are few",
            ),
            _level(
                "layer",
                {"normalisation": "layer"},
                "layer normalisation",
                "better",
                "it speeds up learning without leaning on the other images of a batch",
            ),
        ),
    ),
    Factor(
        "dropout",
        "dropout before the last layer",
        (
            Level("0", {"dropout": 0.0}),
            _level(
                "0.25",
                {"dropout": 0.25},
                "a quarter of the hidden units dropped in training",
                "equal",
                "after so few epochs the network hardly overfits yet",
            ),
            _level(
                "0.5",
                {"dropout": 0.5},
                "half of the hidden units dropped in training",
                "equal",
                "what it saves from overfitting, it costs in speed of learning",
            ),
        ),
    ),
    Factor(
        "first_layer",
        "first layer",
        (
            Level("learned", {"first_layer": "learned"}),
            _level(
                "random",
                {"first_layer": "random"},
                "a first layer that stays as it was drawn",
                "worse",
                "some of eight random kernels look alike, and none is made for strokes",
            ),
            _level(
                "gabor",
                {"first_layer": "gabor"},
                "a fixed bank of Gabor functions as first layer",
                "equal",
                "edges and lines in four directions are what a learned first layer finds too",
            ),
        ),
    ),
    Factor(
        "learning_rate",
        "learning rate",
        (
            Level("0.005", {"learning_rate": 5e-3}),
            _level(
                "0.001",
                {"learning_rate": 1e-3},
                "a learning rate of 0.001, Adam's usual",
                "worse",
                "the epochs are too few to arrive",
            ),
            _level(
                "0.02",
                {"learning_rate": 2e-2},
                "a learning rate of 0.02",
                "worse",
                "steps so large overshoot what a few thousand digits can settle",
            ),
        ),
    ),
    Factor(
        "optimizer",
        "optimizer",
        (
            Level("adam", {"optimizer": "adam", "rate_scale": 1.0}),
            _level(
                "sgd",
                {"optimizer": "sgd", "rate_scale": 10.0},
                "SGD with momentum at ten times the learning rate in place of Adam",
                "equal",
                "at its own learning rate it learns small networks as well",
            ),
            _level(
                "adamw",
                {"optimizer": "adamw", "rate_scale": 1.0},
                "decoupled weight decay beside Adam",
                "equal",
                "in so few steps the decay takes little",
            ),
        ),
    ),
)

_SETTINGS = {
    "data": "mnist",
    "image_size": 0,
    "train_images": 2500,
    "validation_images": 500,
    "test_images": 10_000,
    "shifted_images": 200,
    "epochs": 6,
    "batch_size": 64,
}

FIGURES = ("shift_accuracy", "shift_maps", "equivariance", "augmentations", "kernels", "confusion")
_QUICK_LEVELS = {
    "augmentation": ("shift-3", "rotate-15", "flip-0.5", "erase-8", "noise-0.2"),
    "width": ("4",),
    "kernel_size": ("5",),
    "pooling": ("average", "strided", "blurred"),
    "normalisation": ("batch",),
    "dropout": ("0.5",),
    "optimizer": ("sgd",),
}

STUDY = Study(
    name="vision",
    title="Reading digits with a small convolutional network",
    question="What makes a small convolutional network accurate for its size, and how well does it stand translation?",
    version="2",
    factors=FACTORS,
    responses=RESPONSES,
    presets={
        "smoke": Preset(_SETTINGS | SMOKE, seeds=2),
        "quick": Preset(_SETTINGS, seeds=5, levels=_QUICK_LEVELS),
        "full": Preset(
            _SETTINGS | {"train_images": 50_000, "validation_images": 10_000, "shifted_images": 10_000, "epochs": 30},
            seeds=30,
        ),
    },
    task=ImageTask,
    figures=FIGURES,
)
