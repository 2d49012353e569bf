"""Networks that classify images."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

import recurve.nn

HEADS = ("dense", "small", "gap")
HEAD_UNITS = 128  # of the hidden layer in the head "dense"
CHANNELS = 8  # of the first convolution block; each further block doubles them


class ConvNet(nn.Module):
    """`depth` blocks of 3x3 convolution, ReLU and 2x2 max-pooling, then a head that gives one logit per class.

    Heads: "dense" is a hidden layer of 128 units with ReLU and a linear layer; "small" is the linear layer alone; "gap"
    averages each channel over its map before the linear layer.
    """

    def __init__(self, depth: int, head: str, classes: int = 10, image_size: int = 28) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head {head!r} is unknown; allowed are {', '.join(HEADS)}")
        widths = [1, *(CHANNELS * 2**block for block in range(depth))]
        blocks = [recurve.nn.ConvBlock(a, b, 3, padding=1) for a, b in pairwise(widths)]
        self.blocks = nn.Sequential(*blocks)
        features = widths[-1] * (1 if head == "gap" else (image_size // 2**depth) ** 2)
        self.pool = nn.AdaptiveAvgPool2d(1) if head == "gap" else nn.Identity()
        if head == "dense":
            self.head = nn.Sequential(nn.Linear(features, HEAD_UNITS), nn.ReLU(), nn.Linear(HEAD_UNITS, classes))
        else:
            self.head = nn.Sequential(nn.Linear(features, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, H, W) to logits (B, classes)."""
        return self.head(self.pool(self.blocks(images)).flatten(1))
