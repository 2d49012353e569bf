"""LSTM, GRU, RNN and their cells, with the parameters and behaviour of `torch.nn`'s, running on `recurve.ops`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recurve import ops
from recurve.ops.recurrent import RESETS, Reset, path_of


class _Layers(torch.nn.RNNBase):
    """The forward pass that LSTM, GRU and RNN share: one op per layer and direction.

    What has a projection, and whatever the backend keeps native, goes to torch's own forward. The base is RNNBase, not
    torch's LSTM, GRU or RNN, because `torch.compile` refuses every module that is an instance of those.
    """

    _op: str
    _native: type[torch.nn.RNNBase]
    _run: Callable[..., Any]  # the functional op

    def _options(self) -> dict[str, Any]:
        """What this module adds to every call of its op."""
        return {}

    def _is_native(self, input: Any) -> bool:
        """Whether torch's own forward serves this input, or explains what is wrong with it."""
        if self.proj_size > 0:
            return True
        if isinstance(input, PackedSequence):
            if torch.is_autocast_enabled(input.data.device.type):
                return True  # torch leaves packed sequences as they are
            steps, batch = len(input.batch_sizes), int(input.batch_sizes[0])
            return path_of(self._op, input.data, steps, batch, self.hidden_size, plain=False) == "native"
        if input.dim() not in (2, 3):
            return True
        steps, batch = input.shape[:2] if input.dim() == 3 else (input.size(0), 1)
        if input.dim() == 3 and self.batch_first:
            steps, batch = batch, steps
        return path_of(self._op, input, steps, batch, self.hidden_size) == "native"

    def forward(self, input: Any, hx: Any = None) -> Any:
        if self._is_native(input):
            return self._native.forward(self, input, hx)
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        x, states, batched = self._as_batch(input, hx)
        output, last = self._layers(x, states, None)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            last = tuple(s.squeeze(1) for s in last)
        return output, last if len(last) > 1 else last[0]

    def _packed(self, input: PackedSequence, hx: Any) -> Any:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is None:
            self.check_input(data, batch_sizes)
            states = self._zero_states(int(batch_sizes[0]), data)
        else:
            hx = self.permute_hidden(hx, sorted_indices)
            self.check_forward_args(data, hx, batch_sizes)
            states = self._by_layer(self._own_states(hx))
        x, lengths = torch._VF._pad_packed_sequence(data, batch_sizes, False, 0.0, len(batch_sizes))
        output, last = self._layers(x, states, lengths)
        data, _ = torch._VF._pack_padded_sequence(output, lengths, False)
        packed = PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(last if len(last) > 1 else last[0], unsorted_indices)  # type: ignore[arg-type]

    def _zero_states(self, batch: int, like: Tensor) -> list[tuple[Tensor, ...]]:
        layers = self.num_layers * (2 if self.bidirectional else 1)
        zeros = torch.zeros(batch, self.hidden_size, dtype=like.dtype, device=like.device)
        return [(zeros,) * (2 if self._op == "lstm" else 1)] * layers

    def _own_states(self, hx: Any) -> tuple[Tensor, ...]:
        if self._op != "lstm":
            return (hx,)
        if len(hx) != 2:
            raise RuntimeError(f"LSTM expects two hidden states, h_0 and c_0, got {len(hx)}")
        return tuple(hx)

    def _by_layer(self, state: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        return list(zip(*(s.unbind() for s in state), strict=True))

    def _as_batch(self, input: Tensor, hx: Any) -> tuple[Tensor, list[tuple[Tensor, ...]], bool]:
        """Input as (T, B, I), states (B, H) of each layer and direction, and whether the input had a batch axis."""
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        if hx is None:
            self.check_input(x, None)
            states = self._zero_states(x.size(0) if self.batch_first else x.size(1), x)
        else:
            state = self._own_states(hx)
            dimensions = 3 if batched else 2
            if any(s.dim() != dimensions for s in state):
                found = ", ".join(f"{s.dim()}-D" for s in state)
                kind = "batched 3-D" if batched else "unbatched 2-D"
                raise RuntimeError(f"For {kind} input, the state should also be {dimensions}-D but got {found}")
            state = state if batched else tuple(s.unsqueeze(1) for s in state)
            self.check_forward_args(x, state if len(state) > 1 else state[0], None)  # type: ignore[arg-type]
            states = self._by_layer(state)
        if x.size(1 if self.batch_first else 0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return (x.transpose(0, 1) if self.batch_first else x), states, batched

    def _layers(
        self, x: Tensor, states: list[tuple[Tensor, ...]], lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        directions = 2 if self.bidirectional else 1
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                before = states[layer * directions + direction]
                where = {"lengths": lengths, "reverse": direction == 1}
                y, *after = self._run(x, *before, *self._weights(layer, direction), **where, **self._options())
                outputs.append(y)
                last.append(tuple(after))
            x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = self._dropped(x, lengths)
        if len(last) == 1:
            return x, tuple(state.unsqueeze(0) for state in last[0])
        return x, tuple(torch.stack(after) for after in zip(*last, strict=True))

    def _dropped(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Dropout between layers; of packed sequences on the packed data, so that torch's random numbers are drawn."""
        if lengths is None:
            return torch.nn.functional.dropout(x, self.dropout, True)
        data, batch_sizes = torch._VF._pack_padded_sequence(x, lengths, False)
        data = torch.nn.functional.dropout(data, self.dropout, True)
        return torch._VF._pad_packed_sequence(data, batch_sizes, False, 0.0, x.size(0))[0]

    def _weights(self, layer: int, direction: int) -> list[Tensor | None]:
        names = self._all_weights[layer * (2 if self.bidirectional else 1) + direction]
        return [*(getattr(self, name) for name in names), *(() if self.bias else (None, None))]


class LSTM(_Layers):
    """`torch.nn.LSTM`, on the fused kernel where it serves: same arguments, parameters, state_dict and results."""

    _op = "lstm"
    _run = staticmethod(ops.lstm)
    _native = torch.nn.LSTM
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = torch.nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)


class _PlacesReset:
    """The `reset` of a GRU and of its cell; torch's own forward serves "after" only."""

    reset: Reset

    def _options(self) -> dict[str, Any]:
        return {"reset": self.reset}

    def _is_native(self, input: Any) -> bool:
        return self.reset == "after" and super()._is_native(input)  # type: ignore[misc]

    def extra_repr(self) -> str:
        shown = super().extra_repr()  # type: ignore[misc]
        return shown if self.reset == "after" else f"{shown}, reset={self.reset!r}"


class GRU(_PlacesReset, _Layers):
    """`torch.nn.GRU`, on the fused kernel where it serves: same arguments, parameters, state_dict and results.

    Beyond torch: `reset="before"` applies the reset gate before the product with the recurrent weights, as in
    Cho et al. 2014; "after" it is torch's and the default. The parameters are the same.
    """

    _op = "gru"
    _run = staticmethod(ops.gru)
    _native = torch.nn.GRU

    def __init__(self, *args: Any, reset: Reset = "after", **kwargs: Any) -> None:
        _refuse_projection(kwargs)
        self.reset = _known_reset(reset)
        super().__init__("GRU", *args, **kwargs)


class RNN(_Layers):
    """`torch.nn.RNN`, on the fused kernel where it serves: same arguments, parameters, state_dict and results.

    Beyond torch: `leak` below 1 makes the units leaky integrators, as in Jaeger et al. 2007, with the same parameters.
    """

    _op = "rnn"
    _run = staticmethod(ops.rnn)
    _native = torch.nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        leak: float = 1.0,
        **kwargs: Any,
    ) -> None:
        _refuse_projection(kwargs)
        if not 0 < leak <= 1:
            raise ValueError(f"leak must lie in (0, 1], got {leak}; 1 is the plain RNN")
        self.leak = leak
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity: Any = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, *args, **kwargs)

    def _options(self) -> dict[str, Any]:
        return {"activation": self.nonlinearity, "leak": self.leak}

    def _is_native(self, input: Any) -> bool:
        return self.leak == 1 and super()._is_native(input)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.leak == 1 else f"{shown}, leak={self.leak}"


def _known_reset(reset: Reset) -> Reset:
    if reset not in RESETS:
        raise ValueError(f"reset {reset!r} is unknown; allowed: {', '.join(RESETS)}")
    return reset


def _refuse_projection(arguments: dict[str, Any]) -> None:
    if "proj_size" in arguments:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class _Cell(torch.nn.RNNCellBase):
    """The forward pass that the cells share: a sequence of one step."""

    _op: str
    _run: Callable[..., Any]

    def _options(self) -> dict[str, Any]:
        return {}

    def _is_native(self, input: Tensor) -> bool:
        if torch.is_autocast_enabled(input.device.type):
            return True
        return path_of(self._op, input, 1, input.shape[:-1].numel(), self.hidden_size) == "native"

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        states = 2 if self._op == "lstm" else 1
        given = () if hx is None else tuple(hx) if states > 1 else (hx,)
        fits = input.dim() in (1, 2) and input.size(-1) == self.input_size
        fits = fits and all(s.shape == (*input.shape[:-1], self.hidden_size) for s in given)
        if not fits or self._is_native(input):
            return super().forward(input, hx)  # which also explains what does not fit
        x = input if input.dim() == 2 else input.unsqueeze(0)
        if hx is None:
            state = (torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device),) * states
        else:
            state = given if input.dim() == 2 else tuple(s.unsqueeze(0) for s in given)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        _, *last = self._run(x.unsqueeze(0), *state, *weights, **self._options())
        result = tuple(last) if input.dim() == 2 else tuple(s.squeeze(0) for s in last)
        return result if states > 1 else result[0]


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """`torch.nn.LSTMCell` on the fused kernel where it serves."""

    _op = "lstm"
    _run = staticmethod(ops.lstm)


class GRUCell(_PlacesReset, _Cell, torch.nn.GRUCell):
    """`torch.nn.GRUCell` on the fused kernel where it serves; `reset` as in `GRU`."""

    _op = "gru"
    _run = staticmethod(ops.gru)

    def __init__(self, *args: Any, reset: Reset = "after", **kwargs: Any) -> None:
        self.reset = _known_reset(reset)
        super().__init__(*args, **kwargs)


class RNNCell(_Cell, torch.nn.RNNCell):
    """`torch.nn.RNNCell` on the fused kernel where it serves."""

    _op = "rnn"
    _run = staticmethod(ops.rnn)

    def _options(self) -> dict[str, Any]:
        return {"activation": self.nonlinearity}
