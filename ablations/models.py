"""The networks that studies train, made of this project's own layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

import recurve.nn

CELLS = {"gru": recurve.nn.GRU, "lstm": recurve.nn.LSTM, "rnn": recurve.nn.RNN}
HEADS = ("dense", "small", "gap")
HEAD_UNITS = 128  # of the hidden layer in the head "dense"
CHANNELS = 8  # of the first convolution block; each further block doubles them


class Dropout(nn.Module):
    """Zeroes each value with `probability` in training and scales up the others, as `torch.nn.Dropout`.

    The mask follows from the layer's own stream, the step and the value's place, by an integer hash (the finaliser
    "lowbias32" of C. Wellons), so that it does not depend on which models train beside this one under `torch.vmap`,
    where each model has a probability and a stream of its own. Raises `ValueError` outside 0 <= probability < 1.
    """

    probability: torch.Tensor
    stream: torch.Tensor
    step: torch.Tensor

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout probability must be at least 0 and below 1, got {probability}")
        self.register_buffer("probability", torch.tensor(float(probability)))
        self.register_buffer("stream", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return inputs
        self.step.add_(1)
        places = torch.arange(inputs.numel(), device=inputs.device).reshape(inputs.shape)
        uniform = _hash(places ^ _hash(self.stream + _hash(self.step))).to(inputs) / 2**32
        return inputs * (uniform >= self.probability) / (1 - self.probability)


def _hash(numbers: torch.Tensor) -> torch.Tensor:
    """Integers to pseudo-random ones below 2^32; int64 holds them because torch's unsigned types lack arithmetic."""
    numbers = numbers & 0xFFFFFFFF
    numbers = ((numbers ^ (numbers >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    numbers = ((numbers ^ (numbers >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)


class Forecaster(nn.Module):
    """A recurrent network whose last hidden state forecasts all days ahead at once.

    `cell` is "gru", "lstm" or "rnn"; `depth` counts recurrent layers; `dense` counts dense layers with ReLU, as wide as
    the hidden state, before the linear output.
    """

    def __init__(self, cell: str, hidden_size: int, depth: int, dense: int, horizon: int) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell {cell!r} is unknown; allowed are {', '.join(CELLS)}")
        self.recurrent = CELLS[cell](1, hidden_size, num_layers=depth, batch_first=True)
        hidden = [layer for _ in range(dense) for layer in (nn.Linear(hidden_size, hidden_size), nn.ReLU())]
        self.head = nn.Sequential(*hidden, nn.Linear(hidden_size, horizon))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Histories (B, days, 1) to forecasts (B, horizon)."""
        states, _ = self.recurrent(inputs)
        return self.head(states[:, -1])


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
