"""Handwritten digits (MNIST; origin and licence in `mnist.md`), with a validation part drawn from training by seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

ARCHIVE = Path(__file__).with_name("mnist.npz")


@dataclass(frozen=True)
class Images:
    """Images (N, 1, 28, 28), float32 in [0, 1], and their labels (N,), int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | torch.Tensor) -> Images:
        return Images(self.images[rows], self.labels[rows])


@cache
def mnist(part: str) -> Images:
    """The archive's part "train" (10,000 images) or "test" (10,000)."""
    with np.load(ARCHIVE) as arrays:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    return Images(torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels).long())


def split(images: Images, validation: int, train: int, seed: int) -> tuple[Images, Images]:
    """Disjoint training and validation parts of the given sizes, drawn by `seed`.

    The validation part does not depend on the size of the training part. Raises `ValueError` if images lack.
    """
    if train + validation > len(images):
        raise ValueError(
            f"{train} training + {validation} validation images were asked of {len(images)}; ask for fewer"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[validation : validation + train]], images[order[:validation]]
