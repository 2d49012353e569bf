"""LSTM, GRU and RNN over a whole sequence: the fused ops, their rules for vmap and tracing, and their references.

Shapes throughout: T steps, B sequences, I inputs, H hidden units, E models of an ensemble. Any tensor may carry a
leading E; with E on the weights only, all models read the same input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from recurve import _probe
from recurve._backend import Path, choose
from recurve._extension import HALF
from recurve.ops._cuda import native_wins_recurrent

Activation = Literal["tanh", "relu", "sigmoid"]
Reset = Literal["after", "before"]
RESETS: tuple[Reset, ...] = ("after", "before")
States = tuple[Tensor, ...]
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
MULTIPLIES_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000), one layer.

    Args:
        x: input (T, B, I) or (E, T, B, I).
        h0, c0: initial hidden and cell state (B, H) or (E, B, H).
        w_ih, w_hh: weights (4H, I) and (4H, H) or with leading E; gates in the order i, f, g, o, as in torch.
        b_ih, b_hh: biases (4H,) or (E, 4H), both or neither.
        lengths: number of steps of each sequence (B,), integer; later outputs are zero.
        resets: (T, B), bool; where true the state is zeroed before that step; past a sequence's length it says nothing.
        reverse: go from the last step to the first.

    Returns:
        y (T, B, H), h_n (B, H), c_n (B, H), each with a leading E if there is one. The backward pass needs y: as with
        torch's LSTM, it raises if y was changed in place.

    Raises:
        RuntimeError: shapes or dtypes that do not fit together, or a forced backend that cannot serve.
    """
    plain = lengths is None and resets is None
    path = _path("lstm", x, h0, w_ih, plain)
    if path == "fused":
        return _fused(torch.ops.recurve.lstm, x, (h0, c0), (w_ih, w_hh, b_ih, b_hh), (lengths, resets, reverse))
    if path == "native" and plain:
        return _native("lstm", torch._VF.lstm, x, (h0, c0), (w_ih, w_hh, b_ih, b_hh), reverse)
    return lstm_reference(x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths=lengths, resets=resets, reverse=reverse)


def gru(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset: Reset = "after",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit (Cho et al. 2014), one layer: h_t = (1 - z) n + z h_{t-1}.

    Args:
        reset: where the reset gate r acts. "after" the product, as in torch and cuDNN:
            n = tanh(W x + b + r (U h_{t-1} + b')); or "before" it, as in the paper:
            n = tanh(W x + b + U (r h_{t-1}) + b').

    Weights are (3H, I) and (3H, H), gates in the order r, z, n; all else as in `lstm`, without a cell state.

    Returns:
        y (T, B, H) and h_n (B, H), each with a leading E if there is one.

    Raises:
        ValueError: a `reset` other than "after" and "before".
    """
    if reset not in RESETS:
        raise ValueError(f"reset {reset!r} is unknown; allowed: {', '.join(RESETS)}")
    plain = lengths is None and resets is None and reset == "after"
    path = _path("gru", x, h0, w_ih, plain)
    if path == "fused":
        return _fused(torch.ops.recurve.gru, x, (h0,), (w_ih, w_hh, b_ih, b_hh), (lengths, resets, reverse, reset))
    if path == "native" and plain:
        return _native("gru", torch._VF.gru, x, (h0,), (w_ih, w_hh, b_ih, b_hh), reverse)
    return gru_reference(x, h0, w_ih, w_hh, b_ih, b_hh, reset=reset, lengths=lengths, resets=resets, reverse=reverse)


def rnn(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    activation: Activation = "tanh",
    leak: float = 1.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Elman network (1990), one layer: h_t = (1 - leak) h_{t-1} + leak * activation(W x_t + U h_{t-1} + b).

    Weights are (H, I) and (H, H); leak < 1 makes the units leaky integrators (Jaeger et al. 2007); all else as in
    `lstm`, without a cell state.

    Returns:
        y (T, B, H) and h_n (B, H), each with a leading E if there is one.

    Raises:
        ValueError: an activation other than tanh, relu, sigmoid, or a leak outside (0, 1].
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    if not 0 < leak <= 1:
        raise ValueError(f"leak must lie in (0, 1], got {leak}; 1 is the plain RNN")
    plain = lengths is None and resets is None and leak == 1 and activation != "sigmoid"
    path = _path("rnn", x, h0, w_ih, plain)
    if path == "fused":
        options = (lengths, resets, reverse, activation, leak)
        return _fused(torch.ops.recurve.rnn, x, (h0,), (w_ih, w_hh, b_ih, b_hh), options)
    if path == "native" and plain:
        native = torch._VF.rnn_tanh if activation == "tanh" else torch._VF.rnn_relu
        return _native("rnn", native, x, (h0,), (w_ih, w_hh, b_ih, b_hh), reverse)
    return rnn_reference(
        x, h0, w_ih, w_hh, b_ih, b_hh, activation=activation, leak=leak, lengths=lengths, resets=resets, reverse=reverse
    )


def _path(op: str, x: Tensor, h0: Tensor, w_ih: Tensor, plain: bool) -> Path:
    if x.dim() < 3:
        return choose(op, x)  # which says what is wrong
    return path_of(op, x, x.shape[-3], x.shape[-2], h0.shape[-1], plain=plain and w_ih.dim() == 2)


def path_of(op: str, x: Tensor, steps: int, batch: int, hidden: int, *, plain: bool = True) -> Path:
    """The path of a call with input x (..., I); `plain` is one that torch's own op can serve."""
    probed = not torch.compiler.is_compiling() and _probe.active() is not None
    path = choose(op, x, slower=plain and not probed and _native_wins(op, x, steps, batch, hidden))
    return "reference" if probed and path == "native" else path


def _native_wins(op: str, x: Tensor, steps: int, batch: int, hidden: int) -> bool:
    """Where torch's own op is the faster one, as measured.

    A single step of few sequences: packing the weights does not pay. LSTMs in bfloat16 on a processor that multiplies
    it. And oneDNN's LSTM in float32 on one thread, without gradients, where W x is as large as U h: by 2 to 7 %.
    """
    if torch.compiler.is_compiling():
        return False
    device = x.device.type
    if device not in ("cpu", "cuda"):
        return True
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if device == "cuda":
        return native_wins_recurrent(op, dtype, batch, hidden)
    if steps == 1:
        return batch <= (64 if op == "rnn" else 16)
    if op == "rnn":
        return steps == 2 and batch <= 4
    if dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16:
        return hidden >= (128 if op == "lstm" else 512)
    if op == "gru" or dtype != torch.float32 or torch.is_grad_enabled() or torch.get_num_threads() > 1:
        return False
    return batch >= 64 and 48 <= hidden <= 256 and 2 * x.shape[-1] > hidden


def _fused(
    op: Callable[..., Any],
    x: Tensor,
    states: States,
    weights: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
) -> Any:
    """Call a compiled op, in the type of its arithmetic; what comes out has the type of torch's own results."""
    tensors = (x, *states, *weights)
    device, inside, out = x.device.type, x.dtype, x.dtype
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        inside = torch.get_autocast_dtype(device)
        of_state = op is torch.ops.recurve.gru and device == "cpu"  # cuDNN's GRU gives all in autocast's type
        out = states[0].dtype if of_state else inside
    elif x.dtype in HALF:
        for tensor in tensors:
            if tensor is not None and tensor.dtype != out:
                raise RuntimeError(f"x is {out}, another tensor {tensor.dtype}; convert one of them")
    else:
        return op(*tensors, *options)
    if inside in widened(device):
        inside = torch.float32
    results = op(*(None if t is None else t.to(inside) for t in tensors), *options)
    return tuple(r.to(out) for r in results)


def widened(device: str) -> tuple[torch.dtype, ...]:
    """Types that run in float32 on a kind of device, which has no kernels of their own for them."""
    return HALF if device == "cpu" else ()


def lstm_reference(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm` in plain torch: any dtype, any device, differentiable to any order."""

    def step(projected: Tensor, state: States) -> tuple[States, States]:
        h, c = state
        i, f, g, o = (projected + _linear(h, w_hh, b_hh)).chunk(4, dim=-1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        c = f * c + i * g
        return (o * torch.tanh(c), c), (i, f, g, o)

    _check("lstm", x, (h0, c0), (w_ih, w_hh, b_ih, b_hh), lengths, resets)
    seen = _seen("lstm", ("sigmoid", "sigmoid", "tanh", "sigmoid"), x, w_ih)
    y, (h_n, c_n) = _scan(step, x, w_ih, b_ih, (h0, c0), lengths, resets, reverse, seen)
    return y, h_n, c_n


def gru_reference(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset: Reset = "after",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """`gru` in plain torch: any dtype, any device, differentiable to any order."""

    def step(projected: Tensor, state: States) -> tuple[States, States]:
        (h,) = state
        r_x, z_x, n_x = projected.chunk(3, dim=-1)
        r_h, z_h, n_h = _linear(h, w_hh, b_hh).chunk(3, dim=-1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return ((1 - z) * n + z * h,), (r, z, n)

    hidden = h0.shape[-1]

    def step_before(projected: Tensor, state: States) -> tuple[States, States]:
        (h,) = state
        gates_x, n_x = projected.split((2 * hidden, hidden), dim=-1)
        bias = (None, None) if b_hh is None else b_hh.split((2 * hidden, hidden), dim=-1)
        w_gates, w_n = w_hh.split((2 * hidden, hidden), dim=-2)
        r, z = torch.sigmoid(gates_x + _linear(h, w_gates, bias[0])).chunk(2, dim=-1)
        n = torch.tanh(n_x + _linear(r * h, w_n, bias[1]))
        return ((1 - z) * n + z * h,), (r, z, n)

    _check("gru", x, (h0,), (w_ih, w_hh, b_ih, b_hh), lengths, resets)
    seen = _seen("gru", ("sigmoid", "sigmoid", "tanh"), x, w_ih)
    chosen = step if reset == "after" else step_before
    y, (h_n,) = _scan(chosen, x, w_ih, b_ih, (h0,), lengths, resets, reverse, seen)
    return y, h_n


def rnn_reference(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    activation: Activation = "tanh",
    leak: float = 1.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rnn` in plain torch: any dtype, any device, differentiable to any order."""

    def step(projected: Tensor, state: States) -> tuple[States, States]:
        (h,) = state
        new = ACTIVATIONS[activation](projected + _linear(h, w_hh, b_hh))
        return ((1 - leak) * h + leak * new,), (new,)

    _check("rnn", x, (h0,), (w_ih, w_hh, b_ih, b_hh), lengths, resets)
    seen = _seen("rnn", (activation,), x, w_ih)
    y, (h_n,) = _scan(step, x, w_ih, b_ih, (h0,), lengths, resets, reverse, seen)
    return y, h_n


def _seen(op: str, activations: tuple[str, ...], x: Tensor, w_ih: Tensor) -> _probe.ReferenceCall | None:
    """Where a probe wants this call of a reference recorded, if one is active."""
    probe = None if torch.compiler.is_compiling() else _probe.active()
    if probe is None:
        return None
    call = _probe.ReferenceCall(op, activations, (*w_ih.shape[:-2], x.shape[-3]), x)
    probe.add(call.call)
    return call


def _scan(
    step: Callable[[Tensor, States], tuple[States, States]],
    x: Tensor,
    w_ih: Tensor,
    b_ih: Tensor | None,
    state: States,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    seen: _probe.ReferenceCall | None,
) -> tuple[Tensor, States]:
    """Run `step`, which returns new states and gates, over time; returns all outputs and the last state."""
    steps = x.shape[-3]
    resets = None if resets is None else resets.to(x.device)
    within = None
    if lengths is not None:
        within = torch.arange(steps, device=x.device).unsqueeze(1) < lengths.to(x.device)
        x = x.masked_fill(~within.unsqueeze(-1), 0)  # what lies behind an end may be anything, also not a number
    projected = _linear(x, w_ih.unsqueeze(-3), None if b_ih is None else b_ih.unsqueeze(-2))
    outputs: list[Tensor] = []
    for t in reversed(range(steps)) if reverse else range(steps):
        before = state
        if resets is not None:
            before = tuple(s.masked_fill(resets[t].unsqueeze(-1), 0) for s in state)
        new, gates = step(projected.select(-3, t), before)
        going = None if within is None else within[t]
        if seen is not None:
            seen.see(t, gates, new, going)
        if going is None:
            state = new
            outputs.append(new[0])
        else:
            active = going.unsqueeze(-1)
            state = tuple(torch.where(active, n, s) for n, s in zip(new, state, strict=True))
            outputs.append(torch.where(active, new[0], torch.zeros_like(new[0])))
    return torch.stack(outputs[::-1] if reverse else outputs, dim=-3), state


def _check(
    op: str,
    x: Tensor,
    state: States,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> None:
    """Raise RuntimeError, as the kernels do, for shapes that torch's own ops would take unseen, or broadcast."""
    ensemble = weights[0].dim() == 3
    models = weights[0].shape[0] if ensemble else None
    if x.dim() != 3 and not (x.dim() == 4 and ensemble):
        rule = "x must be (T, B, I), or (E, T, B, I) beside weights with a leading E"
        raise RuntimeError(f"{op}: {rule}, got {list(x.shape)}")
    steps, batch, inputs = x.shape[-3:]
    if steps == 0:
        raise RuntimeError(f"{op}: Expected sequence length to be larger than 0 in RNN")
    if x.dim() == 4 and x.shape[0] != models:
        raise RuntimeError(f"{op}: x has {x.shape[0]} models, the weights have {models}")
    if (weights[2] is None) != (weights[3] is None):
        raise RuntimeError(f"{op}: give both biases or neither")
    hidden = state[0].shape[-1]
    gates = GATES[op] * hidden
    tensors = dict(zip(("w_ih", "w_hh", "b_ih", "b_hh", "h0", "c0"), (*weights, *state), strict=False))
    shapes = [(gates, inputs), (gates, hidden), (gates,), (gates,), (batch, hidden), (batch, hidden)]
    for (name, tensor), shape in zip(tensors.items(), shapes, strict=False):
        if tensor is not None and tensor.shape not in (shape, (models, *shape)):
            also = ", with a leading E or not" if ensemble else ""
            raise RuntimeError(f"{op}: {name} must be {list(shape)}{also}, got {list(tensor.shape)}")
    if lengths is not None:
        _check_lengths(op, lengths, steps, batch)
    if resets is not None and (resets.shape != (steps, batch) or resets.dtype != torch.bool):
        raise RuntimeError(
            f"{op}: resets must be (T, B) = ({steps}, {batch}) of bool, got {list(resets.shape)} of {resets.dtype}"
        )


def _check_lengths(op: str, lengths: Tensor, steps: int, batch: int) -> None:
    if lengths.shape != (batch,) or not _is_integral(lengths.dtype):
        rule = f"lengths must be (B,) = ({batch},) of an integer type"
        raise RuntimeError(f"{op}: {rule}, got {list(lengths.shape)} of {lengths.dtype}")
    seen = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    if seen and batch and torch._C._functorch.peek_interpreter_stack() is None:
        least, most = (int(end) for end in lengths.aminmax())
        if least < 0 or most > steps:
            raise RuntimeError(f"{op}: lengths must lie in [0, {steps}], got {least} to {most}")


def _is_integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., B, I) times weight (..., O, I) transposed, plus bias (..., O); leading axes broadcast."""
    product = x @ weight.mT
    return product if bias is None else product + bias.unsqueeze(-2)


def _native(
    name: str,
    op: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    reverse: bool,
) -> Any:
    """One of torch's own ops as one layer in one direction; an ensemble is a loop over its models."""
    _check(name, x, state, weights)  # torch's modules do; the ops themselves write past what is too small
    if weights[0].dim() == 3:
        results = [
            _native(
                name,
                op,
                x[e] if x.dim() == 4 else x,
                tuple(s[e] if s.dim() == 3 else s for s in state),
                tuple(None if w is None else w[e] for w in weights),  # type: ignore[arg-type]
                reverse,
            )
            for e in range(weights[0].shape[0])
        ]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    given = [w for w in weights if w is not None]
    hidden = tuple(s.unsqueeze(0) for s in state)
    y, *last = op(
        x.flip(0) if reverse else x,
        hidden if len(hidden) > 1 else hidden[0],
        given,
        len(given) == 4,  # has biases
        1,  # layers
        0.0,  # dropout
        x.is_cuda and torch.is_grad_enabled(),  # training: cuDNN keeps what the backward pass needs only then
        False,  # bidirectional
        False,  # batch first
    )
    return (y.flip(0) if reverse else y, *(s.squeeze(0) for s in last))
