"""A network that reads a whole sequence and answers with one number, and ways to start its recurrent weights."""

from __future__ import annotations

import torch
from torch import nn

import recurve.nn
from ablations.design import DesignError

INITIALISATIONS = ("uniform", "orthogonal")


class Reader(nn.Module):
    """A recurrent layer whose last hidden state gives one number.

    `cell` is "lstm", "gru", "rnn" (tanh) or "irnn" (rectified units that start as copies of themselves, without
    biases, Le et al. 2015). `initialisation` is that of each gate's recurrent weights in the others: "uniform" as in
    torch.nn, or "orthogonal" (Saxe et al. 2014). `forget_bias` is what the forget gate of an LSTM starts with; None
    leaves it to torch.nn.
    """

    def __init__(
        self, cell: str, inputs: int, hidden_size: int, initialisation: str, forget_bias: float | None
    ) -> None:
        super().__init__()
        makers = {"lstm": recurve.nn.LSTM, "gru": recurve.nn.GRU, "rnn": recurve.nn.RNN, "irnn": recurve.nn.RNN}
        for what, value, allowed in (("cell", cell, makers), ("initialisation", initialisation, INITIALISATIONS)):
            if value not in allowed:
                raise DesignError(f"{what} {value!r} is unknown; allowed are {', '.join(allowed)}")
        if forget_bias is not None and cell != "lstm":
            raise ValueError(f"cell {cell!r} has no forget gate; leave forget_bias to None, or take cell 'lstm'")
        options = {"nonlinearity": "relu"} if cell == "irnn" else {}
        self.recurrent = makers[cell](inputs, hidden_size, batch_first=True, **options)
        self.head = nn.Linear(hidden_size, 1)
        if cell == "irnn":
            nn.init.eye_(self.recurrent.weight_hh_l0)
            nn.init.zeros_(self.recurrent.bias_ih_l0)
            nn.init.zeros_(self.recurrent.bias_hh_l0)
        elif initialisation == "orthogonal":
            for gate in self.recurrent.weight_hh_l0.split(hidden_size):
                nn.init.orthogonal_(gate)
        if forget_bias is not None:
            forget = slice(hidden_size, 2 * hidden_size)
            with torch.no_grad():
                self.recurrent.bias_ih_l0[forget] = forget_bias
                self.recurrent.bias_hh_l0[forget] = 0.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Sequences (B, T, inputs) to numbers (B,)."""
        states, _ = self.recurrent(inputs)
        return self.head(states[:, -1]).squeeze(-1)
