"""Which algorithm computes a convolution fastest, at what cost in memory and in digits?"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch

from ablations.design import (
    Condition,
    Expectation,
    Expected,
    Factor,
    Hypothesis,
    Level,
    Predictor,
    Preset,
    Response,
    Study,
    full_factorial,
)
from recurve.ops import conv_block

OUTPUTS = 32  # channels


class Block(torch.nn.Module):
    """A convolution by the named algorithm, a rectifier and max pooling over 2 x 2."""

    def __init__(self, channels: int, kernel: int, algorithm: str) -> None:
        super().__init__()
        self.algorithm, self.padding = algorithm, kernel // 2
        self.weight = torch.nn.Parameter(torch.randn(OUTPUTS, channels, kernel, kernel) / math.sqrt(channels) / kernel)
        self.bias = torch.nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) to (B, O, S / 2, S / 2)."""
        return conv_block(images, self.weight, self.bias, padding=self.padding, algorithm=self.algorithm)  # type: ignore[arg-type]


class ConvolutionTask:
    """A block learns to do what another does; how exactly it computes shows against the same block in float64."""

    per_model: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Mapping[str, Any], seed: int) -> None:
        self.settings = settings
        generator = torch.Generator().manual_seed(seed)
        channels, kernel, size = (settings[name] for name in ("channels", "kernel", "size"))
        rows = settings["batches"] * settings["batch_size"]
        images = torch.randn(rows + settings["test_images"], channels, size, size, generator=generator)
        teacher = torch.randn(OUTPUTS, channels, kernel, kernel, generator=generator) / math.sqrt(channels) / kernel
        with torch.no_grad():
            targets = conv_block(images, teacher, padding=kernel // 2, algorithm="native")
        self.train_inputs, self.validation_inputs = images[:rows], images[rows:]
        self.train_targets, self.validation_targets = targets[:rows], targets[rows:]
        self.split = (images, targets)

    @staticmethod
    def data_version(settings: Mapping[str, Any]) -> str:
        return "1"

    def model(self) -> torch.nn.Module:
        return Block(self.settings["channels"], self.settings["kernel"], self.settings["algorithm"])

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(outputs, targets)

    def validate(self, outputs: torch.Tensor) -> dict[str, float]:
        return {}

    def evaluate(self, predict: Predictor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        model = cast(Block, predict.module())
        exact = copy.deepcopy(model).double()
        exact.algorithm = "native"
        (found, slopes), (wanted, exact_slopes) = (self._results(m) for m in (model, exact))
        return {"digits": _digits(found, wanted), "gradient_digits": _digits(slopes, exact_slopes)}, {}

    def _results(self, model: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs on images that were not trained on, and the weights' gradient of their sum of squares."""
        with torch.enable_grad():
            outputs = model(self.validation_inputs.to(model.weight.dtype))
            (slopes,) = torch.autograd.grad(outputs.square().sum(), [model.weight])
        return outputs.detach(), slopes


def _digits(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Decimal digits in which they agree: of the norm of the difference over that of the exact ones."""
    return -math.log10(max(float((found.double() - exact).norm() / exact.norm()), torch.finfo(torch.float64).eps))


def every_geometry(study: Study, chosen: Mapping[str, Sequence[str]]) -> list[Condition]:
    """Every algorithm on every geometry that it serves."""
    conditions = full_factorial(study, chosen)
    return [c for c in conditions if ("algorithm", "winograd") not in c.levels or ("kernel", "3") in c.levels]


_SETTINGS = {"batches": 4, "test_images": 4, "epochs": 1, "learning_rate": 1e-3}
DIGIT = 0.3  # a factor of two in the error
SAME: tuple[Expected, float] = ("equal", DIGIT)
FEWER: tuple[Expected, float] = ("worse", DIGIT)
FASTER = Expectation("seconds_per_step", "better", 0.1)
SLOWER = Expectation("seconds_per_step", "worse", 0.1)
MORE_MEMORY = Expectation("peak_memory", "worse", 0.1)


def _algorithm(name: str, trying: str, because: str, expects: tuple[Expected, float], *also: Expectation) -> Level:
    return Level(name, {"algorithm": name}, Hypothesis(trying, because, *expects, also))


def _geometry(name: str, label: str, baseline: int, others: Mapping[int, tuple[str, str]]) -> Factor:
    levels = [Level(str(value), {name: value}, Hypothesis(a, b, *SAME)) for value, (a, b) in others.items()]
    return Factor(name, label, (Level(str(baseline), {name: baseline}), *levels))


STUDY = Study(
    name="convolution",
    title="Ways to compute a convolution",
    question="Which algorithm computes a convolution fastest, and what does it cost in memory and in digits?",
    version="1",
    factors=(
        Factor(
            "algorithm",
            "algorithm",
            (
                Level("native", {"algorithm": "native"}),
                _algorithm(
                    "auto",
                    "the algorithm that was measured to be fastest for the geometry",
                    "activation and pooling are done while the convolution is in the cache",
                    FEWER,
                    FASTER,
                ),
                _algorithm(
                    "direct",
                    "the sum as it is written, fused with activation and pooling",
                    "what pooling throws away need not be stored",
                    SAME,
                    FASTER,
                ),
                _algorithm(
                    "winograd",
                    "minimal filtering",
                    "tiles of 4 x 4 outputs of a 3 x 3 kernel take a quarter of the multiplications (Lavin and Gray "
                    "2016), whose operands are sums of pixels that rounding blurs",
                    FEWER,
                    FASTER,
                ),
                _algorithm(
                    "im2col",
                    "a matrix of patches",
                    "one matrix product does it all, but every pixel is copied as often as the kernel has elements "
                    "(Chellapilla et al. 2006)",
                    SAME,
                    SLOWER,
                    MORE_MEMORY,
                ),
                _algorithm(
                    "fft",
                    "products of spectra",
                    "their work does not grow with the kernel (Mathieu et al. 2014), which does not pay for small ones",
                    SAME,
                    SLOWER,
                    MORE_MEMORY,
                ),
            ),
        ),
        _geometry(
            "kernel",
            "side of the kernel",
            3,
            {
                1: ("kernels of one pixel", "fewer products are summed, so that fewer are rounded"),
                5: ("kernels of 5 x 5", "sums are in blocks, so that their error hardly grows"),
                9: ("kernels of 9 x 9", "sums are in blocks, so that their error hardly grows"),
            },
        ),
        _geometry(
            "channels",
            "input channels",
            16,
            {
                1: ("images of one channel", "fewer products are summed, so that fewer are rounded"),
                3: ("images of three channels", "fewer products are summed, so that fewer are rounded"),
                64: ("as many as 64 input channels", "sums are in blocks, so that their error hardly grows"),
            },
        ),
        _geometry(
            "size",
            "side of the image",
            16,
            {
                8: ("images of 8 x 8 pixels", "a pixel's error does not depend on its neighbours' number"),
                32: ("images of 32 x 32 pixels", "a pixel's error does not depend on its neighbours' number"),
            },
        ),
        _geometry(
            "batch_size",
            "images of a batch",
            32,
            {1: ("one image at a time", "an image's error does not depend on those beside it")},
        ),
    ),
    responses=(
        Response("digits", "correct digits of the output", "accuracy", "higher"),
        Response("gradient_digits", "correct digits of the weights' gradient", "accuracy", "higher"),
        Response("epochs_to_converge", "epochs to converge", "convergence", "lower"),
        Response("parameters", "parameters", "complexity", "lower"),
        Response("flops", "arithmetic operations per image, computed directly", "complexity", "lower"),
        Response("peak_memory", "memory of a training step", "complexity", "lower", "bytes"),
        Response("seconds_per_step", "time per training step", "complexity", "lower", "s"),
        Response("seconds_per_inference", "time per inference", "complexity", "lower", "s"),
    ),
    presets={
        "smoke": Preset(
            _SETTINGS | {"batches": 1},
            seeds=2,
            levels={"kernel": ("3", "5"), "channels": ("3",), "size": ("8",), "batch_size": ("32",)},
        ),
        "quick": Preset(
            _SETTINGS,
            seeds=3,
            levels={"kernel": ("3", "1", "5", "9"), "channels": ("16", "1", "64"), "size": ("16", "32")},
        ),
        "full": Preset(_SETTINGS, seeds=10),
    },
    task=ConvolutionTask,
    design=every_geometry,
    figures=tuple(f"ablations.report.figures.algorithms:draw_{mode}" for mode in ("training", "inference", "errors")),
)
