"""What is done to images in training: each kind draws all its randomness from the generator it is given.

The generator is the CPU's wherever the images lie, so that a run sees the same images on every device; what is drawn is
sent there without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ablations.design import DesignError

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]  # images (B, C, H, W) in and out


def augmentation(name: str) -> Augmentation:
    """The augmentation called so: "none", a kind with its strength such as "shift-3", or several joined by "+".

    Kinds are `KINDS`: shift (by up to so many pixels), rotate (up to so many degrees), scale (by up to that share),
    flip (with that probability), erase (a square of that side) and noise (of that deviation). Raises `DesignError` for
    any other.
    """
    if name == "none":
        return lambda images, generator: images
    steps = [_step(part) for part in name.split("+")]

    def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        for kind, strength in steps:
            images = kind(images, generator, strength)
        return images

    return augment


def shift(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Images moved by whole pixels, what comes in from outside being zero; offsets (B, 2): right, down."""
    from kornia.geometry.transform import translate

    return translate(images, _sent(offsets, images).to(images), mode="nearest", padding_mode="zeros")


def random_shift(images: torch.Tensor, generator: torch.Generator, pixels: float) -> torch.Tensor:
    """Each image moved by up to `pixels`, a whole number, in both directions."""
    side = int(pixels)
    return shift(images, torch.randint(-side, side + 1, (len(images), 2), generator=generator))


def random_rotation(images: torch.Tensor, generator: torch.Generator, degrees: float) -> torch.Tensor:
    """Each image turned about its centre by up to `degrees` either way, zeros coming in at the corners."""
    angles = (2 * torch.rand(len(images), generator=generator) - 1) * degrees
    from kornia.geometry.transform import rotate

    return rotate(images, _sent(angles, images).to(images))


def random_scale(images: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """Each image made larger or smaller about its centre by up to `share`, zeros coming in at the edges."""
    factors = 1 + (2 * torch.rand(len(images), 1, generator=generator) - 1) * share
    from kornia.geometry.transform import scale

    return scale(images, _sent(factors, images).expand(-1, 2).to(images))


def random_flip(images: torch.Tensor, generator: torch.Generator, probability: float) -> torch.Tensor:
    """Each image mirrored left to right with that probability."""
    mirrored = _sent(torch.rand(len(images), generator=generator) < probability, images)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def random_erasure(images: torch.Tensor, generator: torch.Generator, pixels: float) -> torch.Tensor:
    """A square of that side set to zero in each image, where it lies wholly inside (DeVries & Taylor 2017)."""
    side, hidden = int(pixels), []
    for size in images.shape[-2:]:
        first = torch.randint(size - side + 1, (len(images), 1), generator=generator)
        places = torch.arange(size)
        hidden.append((places >= first) & (places < first + side))
    rows, columns = hidden
    return images.masked_fill(_sent(rows[:, :, None] & columns[:, None, :], images)[:, None], 0)


def random_noise(images: torch.Tensor, generator: torch.Generator, deviation: float) -> torch.Tensor:
    """Gaussian noise added to each pixel by itself."""
    return images + deviation * _sent(torch.randn(images.shape, generator=generator), images)


def _sent(drawn: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """What was drawn, where the images are."""
    return drawn.pin_memory().to(images.device, non_blocking=True) if images.is_cuda and not drawn.is_cuda else drawn


KINDS: Mapping[str, Callable[[torch.Tensor, torch.Generator, float], torch.Tensor]] = {
    "shift": random_shift,
    "rotate": random_rotation,
    "scale": random_scale,
    "flip": random_flip,
    "erase": random_erasure,
    "noise": random_noise,
}


def _step(part: str) -> tuple[Callable[[torch.Tensor, torch.Generator, float], torch.Tensor], float]:
    kind, _, strength = part.partition("-")
    try:
        return KINDS[kind], float(strength)
    except (KeyError, ValueError):
        raise DesignError(
            f"augmentation {part!r} is unknown; allowed are none and, with a number behind, {'-, '.join(KINDS)}-, such "
            "as shift-3, joined by +"
        ) from None
