"""How accurate can a network of a few thousand parameters be, and which part of its training makes it so?"""

from __future__ import annotations

from typing import Any

from ablations.classification import RESPONSES, SMOKE, ImageTask
from ablations.design import Factor, Hypothesis, Level, Preset, Study

MATTERS = 0.001  # a tenth of a percentage point: ten digits of the test set

_SETTINGS: dict[str, Any] = {
    "data": "mnist",
    "image_size": 0,
    "train_images": 55_000,
    "validation_images": 5_000,
    "test_images": 10_000,
    "shifted_images": 1000,
    "augmentation": "shift-1+rotate-5",
    "kernel_size": 3,
    "pooling": "max",
    "padding": "zero",
    "residual": False,
    "separable": False,
    "dropout": 0.0,
    "first_layer": "learned",
    "optimizer": "adam",
    "learning_rate": 0.02,
    "epochs": 20,
    "batch_size": 64,
}
_FEW_IMAGES = {"train_images": 4000, "validation_images": 1000, "shifted_images": 200, "epochs": 8}
_RECIPE_AS_IT_IS: dict[str, tuple[str, ...]] = {"schedule": (), "averaging": (), "normalisation": ()}


def _network(name: str, stages: list[list[int]], head: str, hypothesis: Hypothesis | None = None) -> Level:
    return Level(name, {"stages": stages, "head": head}, hypothesis)


STUDY = Study(
    name="compact",
    title="Accurate networks of a few thousand parameters",
    question="How accurate can so small a network be, and which part of its training makes it so?",
    version="1",
    factors=(
        Factor(
            "network",
            "network",
            (
                _network("2k", [[6], [8], [8]], "small"),
                _network(
                    "1k",
                    [[5], [6], [4]],
                    "small",
                    Hypothesis(
                        trying="a network of less than 1,000 parameters",
                        because="four maps cannot hold all that tells ten digits apart",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
                _network(
                    "4k",
                    [[6], [12], [14]],
                    "small",
                    Hypothesis(
                        trying="a network of less than 4,000 parameters",
                        because="what is read wrongly are rare shapes, which take kernels of their own",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
                _network(
                    "8k",
                    [[8], [16], [16, 16]],
                    "small",
                    Hypothesis(
                        trying="a network of less than 8,000 parameters",
                        because="it is wider, and its fourth layer sees the digit as a whole",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
                _network(
                    "100k",
                    [[24], [48], [64, 64]],
                    "gap",
                    Hypothesis(
                        trying="a network of less than 100,000 parameters",
                        because="garments differ in more than strokes, and digits lose nothing by it",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "schedule",
            "learning-rate schedule",
            (
                Level("one-cycle", {"schedule": "one-cycle"}),
                Level(
                    "cosine",
                    {"schedule": "cosine"},
                    Hypothesis(
                        trying="half a cosine without the rise of the first fifth",
                        because="batch normalisation lets large steps pass from the start",
                        expects="equal",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "constant",
                    {"schedule": "constant"},
                    Hypothesis(
                        trying="a constant learning rate",
                        because="its last steps are as noisy as its first, though averaging mends some of it",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "averaging",
            "averaging of weights",
            (
                Level("0.998", {"averaging": 0.998}),
                Level(
                    "0",
                    {"averaging": 0.0},
                    Hypothesis(
                        trying="the last weights in place of their average over about 500 steps",
                        because="the learning rate has fallen to zero by then, so that they hardly move",
                        expects="equal",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "normalisation",
            "normalisation",
            (
                Level("batch", {"normalisation": "batch"}),
                Level(
                    "none",
                    {"normalisation": "none"},
                    Hypothesis(
                        trying="no batch normalisation",
                        because="some of so few channels die in large steps, and none can be spared",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
    ),
    responses=RESPONSES,
    presets={
        "smoke": Preset(_SETTINGS | SMOKE, seeds=2),
        "quick": Preset(_SETTINGS | _FEW_IMAGES, seeds=8, levels={"network": ("1k", "4k", "8k")}),
        "full": Preset(_SETTINGS, seeds=10),
        "mnist": Preset(_SETTINGS, seeds=1, levels=_RECIPE_AS_IT_IS | {"network": ("8k",)}),
        "fashion": Preset(
            _SETTINGS
            | {
                "data": "fashion-mnist",
                "augmentation": "shift-1+flip-0.5",
                "dropout": 0.1,
                "learning_rate": 0.01,
                "epochs": 10,
            },
            seeds=1,
            levels=_RECIPE_AS_IT_IS | {"network": ("100k",)},
        ),
    },
    task=ImageTask,
    figures=("shift_accuracy", "shift_maps", "kernels", "confusion"),
)
