"""Dropout whose mask does not depend on which models train beside this one."""

from __future__ import annotations

import torch
from torch import nn


class Dropout(nn.Module):
    """Zeroes each value with `probability` in training and scales up the others, as `torch.nn.Dropout`.

    The mask follows from the layer's own stream, the step and the value's place, by an integer hash (the finaliser
    "lowbias32" of C. Wellons), so that it does not depend on which models train beside this one under `torch.vmap`,
    where each model has a probability and a stream of its own. Raises `ValueError` outside 0 <= probability < 1.

    Where `drops` is false, as it begins for a probability of zero, nothing is drawn; a layer that stands for those of
    several models has to be told if one of them drops.
    """

    probability: torch.Tensor
    stream: torch.Tensor
    step: torch.Tensor

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout probability must be at least 0 and below 1, got {probability}")
        self.drops = probability > 0
        self.register_buffer("probability", torch.tensor(float(probability)))
        self.register_buffer("stream", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.drops):
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
