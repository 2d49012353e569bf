"""The task of studies on images: naming what an image shows, and how steady the answer is when the image moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch

from ablations.data import tell_repairs
from ablations.data.augmentation import augmentation, shift
from ablations.data.images import held_out, load, parts, repairs, version
from ablations.design import Predictor, Response
from ablations.models import ConvNet, Style

SHIFTS = np.arange(-6, 7, 2)  # pixels down and to the right
CENTRE = len(SHIFTS) // 2
EQUIVARIANCE_SHIFT = 3  # pixels to the right and down, in a frame whose sides are joined
EQUIVARIANCE_IMAGES = 100
SHOWN_IMAGES = 8  # of the figure of augmentations
RESPONSES = (
    Response("accuracy", "test accuracy", "accuracy", "higher", "%"),
    Response("shift_consistency", "answers kept under shifts of 2 pixels", "accuracy", "higher", "%"),
    Response("shifted_accuracy", "mean accuracy under shifts of up to 6 pixels", "accuracy", "higher", "%"),
    Response("equivariance_error", "equivariance error of the last block", "accuracy", "lower", "%"),
    Response("epochs_to_converge", "epochs to converge", "convergence", "lower"),
    Response("parameters", "parameters", "complexity", "lower"),
    Response("flops", "arithmetic operations per image", "complexity", "lower"),
    Response("peak_memory", "memory of a training step", "complexity", "lower", "bytes"),
    Response("seconds_per_step", "time per training step", "complexity", "lower", "s"),
)
SMOKE = {"train_images": 512, "validation_images": 256, "test_images": 500, "shifted_images": 100, "epochs": 2}


class ImageTask:
    """Which of its classes an image belongs to.

    The network has the layers of `stages`, or `depth` stages of one layer with `width` channels in the first and twice
    as many in each next one.
    """

    per_model: ClassVar[frozenset[str]] = frozenset({"augmentation", "dropout"})

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        self.settings = settings
        data, size = settings["data"], settings["image_size"]
        self.classes = int(load(data, "train", size).labels.max()) + 1
        train, self.validation = parts(data, size, settings["validation_images"], settings["train_images"], seed)
        self.test = held_out(data, settings["test_images"], size)
        self.train_inputs, self.train_targets = train.images, train.labels
        self.split = (train.labels, self.validation.labels, self.test.labels)
        self.augment = augmentation(settings["augmentation"])

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        """What is repaired in the data is told here, once, when runs are planned."""
        tell_repairs(repairs(settings["data"], settings["image_size"]))
        return version(settings["data"])

    def model(self) -> ConvNet:
        chosen = self.settings
        style = Style(
            chosen["kernel_size"],
            chosen["padding"],
            chosen["normalisation"],
            chosen["residual"],
            chosen["separable"],
        )
        stages = chosen.get("stages") or [[chosen["width"] * 2**stage] for stage in range(chosen["depth"])]
        parts = {name: chosen[name] for name in ("pooling", "head", "dropout", "first_layer")}
        return ConvNet(self.train_inputs.shape[1:], self.classes, stages, style=style, **parts)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets)

    @property
    def validation_inputs(self) -> torch.Tensor:
        return self.validation.images

    @property
    def validation_targets(self) -> torch.Tensor:
        return self.validation.labels

    def validate(self, outputs: torch.Tensor) -> dict[str, float]:
        return {"validation_accuracy": _share(outputs.argmax(1) == self.validation.labels)}

    def evaluate(self, predict: Predictor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        labels = self.test.labels
        predicted = predict(self.test.images).argmax(1)
        moved = self.test[: self.settings["shifted_images"]]
        answers = shifted_answers(predict, moved.images)
        accuracies = (answers == moved.labels.numpy()).mean(axis=2)
        network = cast(ConvNet, predict.module())
        errors = equivariance_errors(network, self.test.images[:EQUIVARIANCE_IMAGES])
        originals = self.train_inputs[:SHOWN_IMAGES]
        augmented = self.augment(originals, torch.Generator().manual_seed(0))
        responses = {
            "accuracy": _share(predicted == labels),
            "shift_consistency": consistency(answers),
            "shifted_accuracy": float(accuracies.mean()),
            "equivariance_error": float(errors[-1]),
        }
        arrays: dict[str, np.ndarray] = {
            "data": np.array(self.settings["data"]),
            "repaired": np.array(repairs(self.settings["data"], self.settings["image_size"]), dtype=str),
            "label": labels.numpy().astype(np.uint8),
            "predicted": predicted.numpy().astype(np.uint8),
            "shift_pixels": SHIFTS.astype(np.int8),
            "shift_accuracy": accuracies[CENTRE].astype(np.float32),
            "shift_map": accuracies.astype(np.float32),
            "equivariance_errors": errors.astype(np.float32),
            "first_kernels": network.first_kernels().numpy(),
            "originals": _bytes(originals),
            "augmented": _bytes(augmented),
        }
        return responses, arrays


def shifted_answers(predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> np.ndarray:
    """The classes (7, 7, N) named when images are moved down by each of `SHIFTS`, and to the right by each."""

    def answers(down: int, right: int) -> np.ndarray:
        offsets = torch.tensor([right, down]).expand(len(images), 2)
        return predict(shift(images, offsets)).argmax(1).numpy()

    return np.array([[answers(int(down), int(right)) for right in SHIFTS] for down in SHIFTS])


def consistency(answers: np.ndarray) -> float:
    """Share of answers (7, 7, N) under the eight shifts of two pixels that are those of the image in its place."""
    around = answers[CENTRE - 1 : CENTRE + 2, CENTRE - 1 : CENTRE + 2]
    kept = (around == answers[CENTRE, CENTRE]).mean(axis=2)
    return float((kept.sum() - 1) / 8)


@torch.no_grad()
def equivariance_errors(network: ConvNet, images: torch.Tensor) -> np.ndarray:
    """How far each layer's maps are from moving with the image, (layers,).

    The image is rolled by 3 pixels in both directions, the maps by as large a share of their sides, which is
    interpolated by Fourier's series where it is no whole number of places (Karras et al. 2021). The error is the
    distance between the maps of the rolled image and the rolled maps of the image, over the root of the sum of squares
    of the latter about their mean.
    """
    moved = network.features(images.roll((EQUIVARIANCE_SHIFT,) * 2, dims=(-2, -1)))
    errors = []
    for maps, maps_of_moved in zip(network.features(images), moved, strict=True):
        height, width = (EQUIVARIANCE_SHIFT * m / i for m, i in zip(maps.shape[-2:], images.shape[-2:], strict=True))
        expected = roll(maps, height, width)
        spread = expected - expected.mean(dim=(0, 2, 3), keepdim=True)
        errors.append(float((maps_of_moved - expected).norm() / spread.norm().clamp_min(1e-12)))
    return np.array(errors)


def roll(maps: torch.Tensor, down: float, right: float) -> torch.Tensor:
    """Maps (..., H, W) rolled by any number of places, also broken ones, by the phases of their Fourier series."""
    height, width = maps.shape[-2:]
    rows, columns = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    phase = torch.exp(-2j * torch.pi * (down * rows[:, None] + right * columns))
    return torch.fft.irfft2(torch.fft.rfft2(maps.double()) * phase, s=(height, width)).to(maps)


def _share(correct: torch.Tensor) -> float:
    return float(correct.double().mean())


def _bytes(images: torch.Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
