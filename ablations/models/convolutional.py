"""Networks that classify images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ablations.design import DesignError
from ablations.gabor import gabor_bank
from ablations.models.dropout import Dropout
from recurve.nn import ConvBlock

HEADS = ("dense", "small", "gap")
POOLINGS = ("max", "average", "strided", "blurred", "none")
PADDINGS = ("zero", "circular")
NORMALISATIONS = ("none", "batch", "layer")
FIRST_LAYERS = ("learned", "random", "gabor")
HEAD_UNITS = 128  # of the hidden layer in the head "dense"


@dataclass(frozen=True)
class Style:
    """What all layers of a network have in common; `ValueError` lists what is allowed."""

    kernel_size: int = 3
    padding: str = "zero"
    normalisation: str = "none"
    residual: bool = False
    separable: bool = False

    def __post_init__(self) -> None:
        _check("padding", self.padding, PADDINGS)
        _check("normalisation", self.normalisation, NORMALISATIONS)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel size {self.kernel_size} has no centre; allowed are odd numbers")


class Layer(nn.Module):
    """Convolution, ReLU and pooling; maps keep their size but for the pooling.

    Normalisation stands between pooling and a ReLU that then comes last (as in Jordan's airbench: fewer places to
    normalise), or before ReLU and pooling where the layer is residual or its pooling blurred. A `residual` layer adds
    its input before the ReLU, channels it lacks being zero (He et al. 2016, option A). A `separable` one convolves each
    channel by itself, then mixes channels point by point (Chollet 2017). Pooling is over 2 x 2 places: "max",
    "average", "strided" (the convolution itself skips every other place), "blurred" (Zhang 2019) or "none".
    """

    def __init__(self, inputs: int, outputs: int, style: Style, pooling: str) -> None:
        super().__init__()
        _check("pooling", pooling, POOLINGS)
        self.style, self.pooling = style, pooling
        bare = style.normalisation == "none"
        pools = pooling in ("max", "average") and not style.residual
        last: dict[str, Any] = {
            "activation": "relu" if bare and not style.residual else "none",
            "pool": pooling if pools else "none",
        }
        side, stride = style.kernel_size, 2 if pooling == "strided" else 1
        place: dict[str, Any] = {"stride": stride, "padding": 0 if style.padding == "circular" else side // 2}
        if style.separable:
            alone: dict[str, Any] = {"groups": inputs, "bias": False, "activation": "none", "pool": "none"}
            self.convolution: nn.Module = nn.Sequential(
                ConvBlock(inputs, inputs, side, **place, **alone), ConvBlock(inputs, outputs, 1, bias=bare, **last)
            )
        else:
            self.convolution = ConvBlock(inputs, outputs, side, **place, bias=bare, **last)
        self.normalisation = _normalisation(style.normalisation, outputs)
        self._rectified, self._pooled = last["activation"] == "relu", pools or pooling in ("strided", "none")

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        outputs = self.normalisation(self.convolution(self._joined(maps, [self.style.kernel_size // 2] * 4)))
        if self.style.residual:
            outputs = outputs + _shortcut(maps, outputs)
        if not self._rectified:
            outputs = F.relu(outputs)
        return outputs if self._pooled else self._pool(outputs)

    def _joined(self, maps: torch.Tensor, margins: list[int]) -> torch.Tensor:
        """The maps with what circular padding adds; zeros are the convolution's own business."""
        return F.pad(maps, margins, mode="circular") if self.style.padding == "circular" else maps

    def _pool(self, maps: torch.Tensor) -> torch.Tensor:
        if self.pooling == "max":
            return F.max_pool2d(maps, 2)
        if self.pooling == "average":
            return F.avg_pool2d(maps, 2)
        maxima = self._joined(maps, [0, 1, 0, 1])
        maxima = maxima[..., :-1, :] + F.relu(maxima[..., 1:, :] - maxima[..., :-1, :])  # torch's kernels are slower
        maxima = maxima[..., :-1] + F.relu(maxima[..., 1:] - maxima[..., :-1])
        down, right = (
            _blur(there, here // 2, self.style.padding == "circular", maps.dtype, maps.device)
            for here, there in zip(maps.shape[-2:], maxima.shape[-2:], strict=True)
        )
        return down @ maxima @ right.T


class ConvNet(nn.Module):
    """Stages of convolution layers, each ending with a pooling, then a head that gives one logit per class.

    Args:
        image: (C, H, W) of one image.
        classes: how many there are.
        stages: the channels of each layer, stage by stage: `[[8], [16, 16]]` has three layers and two poolings.
        pooling: at the end of each stage, see `Layer`.
        head: "dense" is a hidden layer of 128 units with ReLU and a linear layer; "small" the linear layer alone;
            "gap" averages each channel over its map before the linear layer.
        dropout: probability before the last linear layer.
        first_layer: "learned", "random" (stays as drawn) or "gabor" (a fixed bank, see `gabor_bank`).
        style: what layers have in common; the first layer is never residual nor separable.

    Raises:
        ValueError: an unknown part, or more poolings than the image has room for.
    """

    def __init__(
        self,
        image: Sequence[int],
        classes: int,
        stages: Sequence[Sequence[int]],
        *,
        pooling: str = "max",
        head: str = "gap",
        dropout: float = 0.0,
        first_layer: str = "learned",
        style: Style | None = None,
    ) -> None:
        super().__init__()
        _check("head", head, HEADS)
        _check("first layer", first_layer, FIRST_LAYERS)
        if pooling != "none" and 2 ** len(stages) > min(image[1:]):
            raise ValueError(
                f"{len(stages)} poolings leave nothing of {image[1]} x {image[2]} pixels; use fewer stages"
            )
        widths = [image[0], *chain.from_iterable(stages)]
        last = {sum(map(len, stages[: k + 1])) - 1 for k in range(len(stages))}
        style = style or Style()
        plain = replace(style, residual=False, separable=False)
        self.layers = nn.ModuleList(
            Layer(widths[k], widths[k + 1], style if k else plain, pooling if k in last else "none")
            for k in range(len(widths) - 1)
        )
        self._fix_first(first_layer)
        with torch.no_grad():
            shape = self.features(torch.zeros(1, *image))[-1].shape
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1) if head == "gap" else nn.Identity()
        features = shape[1] if head == "gap" else shape[1:].numel()
        hidden = [nn.Linear(features, HEAD_UNITS), nn.ReLU()] if head == "dense" else []
        self.head = nn.Sequential(*hidden, Dropout(dropout), nn.Linear(HEAD_UNITS if hidden else features, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        return self.head(self.pool(self.features(images)[-1]).flatten(1))

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps (B, channels, H', W') that each layer gives."""
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[1:]

    def first_kernels(self) -> torch.Tensor:
        """(O, C, k, k)."""
        return self._first.weight.detach()

    @property
    def _first(self) -> ConvBlock:
        return cast(ConvBlock, cast(Layer, self.layers[0]).convolution)

    def _fix_first(self, kind: str) -> None:
        if kind == "learned":
            return
        weight = self._first.weight.requires_grad_(False)
        if kind == "gabor":
            weight.copy_(torch.from_numpy(gabor_bank(*weight.shape[:3])))


def _normalisation(kind: str, channels: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(1, channels)


@cache
def _blur(places: int, kept: int, circular: bool, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix (kept, places) of a blur by 1, 2, 1 at every other place; edges are joined or reflect.

    Made once, for a CUDA graph cannot copy it.
    """
    matrix = torch.zeros(kept, places)
    for row in range(kept):
        for offset, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            place = 2 * row + offset
            reflected = min(abs(place), 2 * (places - 1) - place)
            matrix[row, place % places if circular else reflected] += weight
    return matrix.to(device, dtype)


def _shortcut(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The maps with as many channels and places as `like`: absent channels are zero, superfluous ones left out."""
    step = -(-maps.shape[-1] // like.shape[-1])
    maps = maps[..., : like.shape[-3], ::step, ::step]
    return F.pad(maps, [0, 0, 0, 0, 0, like.shape[-3] - maps.shape[-3]])


def _check(what: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise DesignError(f"{what} {name!r} is unknown; allowed are {', '.join(allowed)}")
