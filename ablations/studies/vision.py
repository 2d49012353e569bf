"""What makes a small convolutional network accurate for its size, and how well does it stand translation?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from ablations.data.augmentation import augmentation, shift
from ablations.data.images import held_out, load, split
from ablations.design import Factor, Hypothesis, Level, Preset, Response, Study
from ablations.models import ConvNet

CONSISTENT_WITHIN = 3  # pixels
SHIFTS = np.arange(-6, 7)  # pixels to the right, of the figure of accuracy under shifts


class VisionTask:
    """Which digit an image shows."""

    per_model: ClassVar[frozenset[str]] = frozenset({"augmentation", "shift_pixels", "rotate_degrees"})

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        self.settings = settings
        data, size = settings["data"], settings["image_size"]
        training = load(data, "train", size)
        train, self.validation = split(training, settings["validation_images"], settings["train_images"], seed)
        self.test = held_out(data, settings["test_images"], size)
        self.train_inputs, self.train_targets = train.images, train.labels
        self.split = (train.labels, self.validation.labels, self.test.labels)
        self.augment = augmentation(
            settings["augmentation"], pixels=settings["shift_pixels"], degrees=settings["rotate_degrees"]
        )

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        return "2"

    def model(self) -> torch.nn.Module:
        return ConvNet(self.settings["depth"], self.settings["head"])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets)

    def validate(self, predict: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        outputs = predict(self.validation.images)
        return {
            "validation_loss": float(self.loss(outputs, self.validation.labels)),
            "validation_accuracy": _share(outputs.argmax(1) == self.validation.labels),
        }

    def evaluate(
        self, predict: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        labels = self.test.labels
        predicted = predict(self.test.images).argmax(1)
        moved = predict(shift(self.test.images, consistency_offsets(len(labels)))).argmax(1)
        responses = {"accuracy": _share(predicted == labels), "shift_consistency": _share(predicted == moved)}
        arrays: dict[str, np.ndarray] = {
            "label": labels.numpy().astype(np.uint8),
            "predicted": predicted.numpy().astype(np.uint8),
            "shift_pixels": SHIFTS.astype(np.int8),
            "shift_accuracy": self._shift_accuracy(predict).astype(np.float32),
        }
        return responses, arrays

    def _shift_accuracy(self, predict: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """Accuracy (13,) on the first test images, moved sideways by each of `SHIFTS`."""
        subset = self.test[: self.settings["shifted_images"]]

        def accuracy(pixels: int) -> float:
            offsets = torch.tensor([pixels, 0]).expand(len(subset), 2)
            return _share(predict(shift(subset.images, offsets)).argmax(1) == subset.labels)

        return np.array([accuracy(int(pixels)) for pixels in SHIFTS])


def consistency_offsets(count: int) -> torch.Tensor:
    """One shift (count, 2) per test image, right and down, none of them zero; the same for every run."""
    side = torch.arange(-CONSISTENT_WITHIN, CONSISTENT_WITHIN + 1)
    offsets = torch.cartesian_prod(side, side)
    offsets = offsets[offsets.any(dim=1)]
    return offsets[torch.randint(len(offsets), (count,), generator=torch.Generator().manual_seed(0))]


def _share(correct: torch.Tensor) -> float:
    return float(correct.double().mean())


_SETTINGS = {
    "data": "mnist",
    "image_size": 0,
    "train_images": 4000,
    "validation_images": 1000,
    "test_images": 10_000,
    "shifted_images": 1000,
    "shift_pixels": 3,
    "rotate_degrees": 15,
    "epochs": 8,
    "batch_size": 64,
    "learning_rate": 5e-3,
}
MATTERS = 0.005  # half a percentage point: one digit in 200

STUDY = Study(
    name="vision",
    title="Reading digits with a small convolutional network",
    question="What makes a small convolutional network accurate for its size, and how well does it stand translation?",
    version="2",
    factors=(
        Factor(
            "augmentation",
            "augmentation in training",
            (
                Level("none", {"augmentation": "none"}),
                Level(
                    "shift",
                    {"augmentation": "shift"},
                    Hypothesis(
                        trying="training images shifted by up to 3 pixels",
                        because="a few thousand digits do not show every place where a stroke may lie",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "rotate",
                    {"augmentation": "rotate"},
                    Hypothesis(
                        trying="training images turned by up to 15 degrees",
                        because="people slant their digits by about as much",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "flip",
                    {"augmentation": "flip"},
                    Hypothesis(
                        trying="training images mirrored left to right half of the time",
                        because="a mirrored digit is no digit, so that half of what is learnt is wasted",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "depth",
            "convolution blocks",
            (
                Level("2", {"depth": 2}),
                Level(
                    "1",
                    {"depth": 1},
                    Hypothesis(
                        trying="one convolution block in place of two",
                        because="strokes and corners are seen, but not yet how they join",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "3",
                    {"depth": 3},
                    Hypothesis(
                        trying="three convolution blocks in place of two",
                        because="one more block sees half of the digit at once",
                        expects="better",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
        Factor(
            "head",
            "head",
            (
                Level("dense", {"head": "dense"}),
                Level(
                    "small",
                    {"head": "small"},
                    Hypothesis(
                        trying="a single linear layer in place of the dense head",
                        because="the features are nearly linearly separable, and most parameters sit in the dense head",
                        expects="equal",
                        margin=MATTERS,
                    ),
                ),
                Level(
                    "gap",
                    {"head": "gap"},
                    Hypothesis(
                        trying="global average pooling in place of the dense head",
                        because="it forgets where a stroke was, which helps against shifts but loses the digit's shape",
                        expects="worse",
                        margin=MATTERS,
                    ),
                ),
            ),
        ),
    ),
    responses=(
        Response("accuracy", "test accuracy", "accuracy", "higher", "%"),
        Response("shift_consistency", "answers kept under shifts of up to 3 pixels", "accuracy", "higher", "%"),
        Response("epochs_to_converge", "epochs to converge", "convergence", "lower"),
        Response("parameters", "parameters", "complexity", "lower"),
        Response("flops", "arithmetic operations per image", "complexity", "lower"),
        Response("peak_memory", "memory of a training step", "complexity", "lower", "bytes"),
        Response("seconds_per_step", "time per training step", "complexity", "lower", "s"),
    ),
    presets={
        "smoke": Preset(
            _SETTINGS
            | {"train_images": 512, "validation_images": 256, "test_images": 500, "shifted_images": 100, "epochs": 2},
            seeds=2,
        ),
        "quick": Preset(_SETTINGS, seeds=8),
        "full": Preset(
            _SETTINGS | {"train_images": 50_000, "validation_images": 10_000, "shifted_images": 10_000, "epochs": 30},
            seeds=30,
        ),
    },
    task=VisionTask,
    figures=("shift_accuracy",),
)
