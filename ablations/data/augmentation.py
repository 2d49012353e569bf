"""What is done to images in training: each kind draws all its randomness from the generator it is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kornia.geometry.transform import hflip, rotate, translate

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # images (B, C, H, W) in and out


def augmentation(kind: str, *, pixels: int, degrees: float) -> Augmentation:
    """The augmentation called `kind`; `pixels` limits "shift" and `degrees` limits "rotate"."""
    kinds: dict[str, Augmentation] = {
        "none": lambda images, generator: images,
        "shift": lambda images, generator: random_shift(images, generator, pixels),
        "rotate": lambda images, generator: random_rotation(images, generator, degrees),
        "flip": random_flip,
    }
    if kind not in kinds:
        raise ValueError(f"augmentation {kind!r} is unknown; allowed are {', '.join(kinds)}")
    return kinds[kind]


def shift(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Images moved by whole pixels, what comes in from outside being zero; offsets (B, 2): right, down."""
    return translate(images, offsets.to(images), mode="nearest", padding_mode="zeros")


def random_shift(images: torch.Tensor, generator: torch.Generator, pixels: int) -> torch.Tensor:
    """Each image moved by up to `pixels` in both directions."""
    return shift(images, torch.randint(-pixels, pixels + 1, (len(images), 2), generator=generator))


def random_rotation(images: torch.Tensor, generator: torch.Generator, degrees: float) -> torch.Tensor:
    """Each image turned about its centre by up to `degrees` either way, zeros coming in at the corners."""
    angles = (2 * torch.rand(len(images), generator=generator) - 1) * degrees
    return rotate(images, angles.to(images))


def random_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored left to right with probability one half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], hflip(images), images)
