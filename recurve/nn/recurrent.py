"""LSTM, GRU, RNN and their cells, with the parameters and behaviour of `torch.nn`'s, running on `recurve.ops`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recurve import ops
from recurve._backend import choose


class _Layers(torch.nn.RNNBase):
    """The forward pass that LSTM, GRU and RNN share: one fused op per layer and direction.

    Packed sequences and projections, and whatever the backend keeps native, go to torch's own forward. The base is
    RNNBase, not torch's LSTM, GRU or RNN, because `torch.compile` refuses every module that is an instance of those.
    """

    _op: str
    _native: type[torch.nn.RNNBase]

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor | None], reverse: bool) -> Any:
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None) -> Any:
        native = isinstance(input, PackedSequence) or self.proj_size > 0 or choose(self._op, input) == "native"
        if native or input.dim() not in (2, 3):
            return self._native.forward(self, input, hx)
        x, state, batched = self._as_batch(input, hx)
        output, last = self._layers(x, state)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            last = tuple(s.squeeze(1) for s in last)
        return output, last if len(last) > 1 else last[0]

    def _as_batch(self, input: Tensor, hx: Any) -> tuple[Tensor, tuple[Tensor, ...], bool]:
        """Input as (T, B, I), states as (layers * directions, B, H), and whether the input had a batch axis."""
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        states = 2 if self._op == "lstm" else 1
        if hx is None:
            batch = x.size(0) if self.batch_first else x.size(1)
            layers = self.num_layers * (2 if self.bidirectional else 1)
            zeros = torch.zeros(layers, batch, self.hidden_size, dtype=x.dtype, device=x.device)
            state = (zeros,) * states
        else:
            state = tuple(hx) if states > 1 else (hx,)
            dimensions = 3 if batched else 2
            if any(s.dim() != dimensions for s in state):
                found = ", ".join(f"{s.dim()}-D" for s in state)
                kind = "batched 3-D" if batched else "unbatched 2-D"
                raise RuntimeError(f"For {kind} input, the state should also be {dimensions}-D but got {found}")
            state = state if batched else tuple(s.unsqueeze(1) for s in state)
        self.check_forward_args(x, state if states > 1 else state[0], None)  # type: ignore[arg-type]
        if x.size(1 if self.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return (x.transpose(0, 1) if self.batch_first else x), state, batched

    def _layers(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        directions = 2 if self.bidirectional else 1
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                y, *states = self._run(
                    x, tuple(s[index] for s in state), self._weights(layer, direction), direction == 1
                )
                outputs.append(y)
                last.append(tuple(states))
            x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
            if self.dropout and layer < self.num_layers - 1:
                x = torch.nn.functional.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(states) for states in zip(*last, strict=True))

    def _weights(self, layer: int, direction: int) -> list[Tensor | None]:
        suffix = f"_l{layer}{'_reverse' if direction else ''}"
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [getattr(self, name + suffix) if self.bias or name.startswith("weight") else None for name in names]


class LSTM(_Layers):
    """`torch.nn.LSTM`, on the fused kernel where it serves: same arguments, parameters, state_dict and results."""

    _op = "lstm"
    _native = torch.nn.LSTM
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = torch.nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor | None], reverse: bool) -> Any:
        return ops.lstm(x, *state, *weights, reverse=reverse)


class GRU(_Layers):
    """`torch.nn.GRU`, on the fused kernel where it serves: same arguments, parameters, state_dict and results."""

    _op = "gru"
    _native = torch.nn.GRU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor | None], reverse: bool) -> Any:
        return ops.gru(x, *state, *weights, reverse=reverse)


class RNN(_Layers):
    """`torch.nn.RNN`, on the fused kernel where it serves: same arguments, parameters, state_dict and results."""

    _op = "rnn"
    _native = torch.nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        _refuse_projection(kwargs)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity: Any = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, *args, **kwargs)

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor | None], reverse: bool) -> Any:
        return ops.rnn(x, *state, *weights, activation=self.nonlinearity, reverse=reverse)


def _refuse_projection(arguments: dict[str, Any]) -> None:
    if "proj_size" in arguments:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class _Cell(torch.nn.RNNCellBase):
    """The forward pass that the cells share: a sequence of one step."""

    _op: str

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]) -> Any:
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        states = 2 if self._op == "lstm" else 1
        given = () if hx is None else tuple(hx) if states > 1 else (hx,)
        fits = input.dim() in (1, 2) and input.size(-1) == self.input_size
        fits = fits and all(s.shape == (*input.shape[:-1], self.hidden_size) for s in given)
        if not fits or choose(self._op, input) == "native":
            return super().forward(input, hx)  # which also explains what does not fit
        x = input if input.dim() == 2 else input.unsqueeze(0)
        if hx is None:
            state = (torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device),) * states
        else:
            state = given if input.dim() == 2 else tuple(s.unsqueeze(0) for s in given)
        _, *last = self._run(x.unsqueeze(0), state, (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh))
        result = tuple(last) if input.dim() == 2 else tuple(s.squeeze(0) for s in last)
        return result if states > 1 else result[0]


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """`torch.nn.LSTMCell` on the fused kernel where it serves."""

    _op = "lstm"

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]) -> Any:
        return ops.lstm(x, *state, *weights)


class GRUCell(_Cell, torch.nn.GRUCell):
    """`torch.nn.GRUCell` on the fused kernel where it serves."""

    _op = "gru"

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]) -> Any:
        return ops.gru(x, *state, *weights)


class RNNCell(_Cell, torch.nn.RNNCell):
    """`torch.nn.RNNCell` on the fused kernel where it serves."""

    _op = "rnn"

    def _run(self, x: Tensor, state: tuple[Tensor, ...], weights: tuple[Tensor | None, ...]) -> Any:
        return ops.rnn(x, *state, *weights, activation=self.nonlinearity)  # type: ignore[arg-type]
