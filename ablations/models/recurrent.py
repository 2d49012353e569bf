"""Networks that forecast a series from its history."""

from __future__ import annotations

import torch
from torch import nn

import recurve.nn

CELLS = {"gru": recurve.nn.GRU, "lstm": recurve.nn.LSTM, "rnn": recurve.nn.RNN}


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
