"""What tracing, vmap and double backward need to know of the compiled recurrent ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recurve import _probe
from recurve._extension import HALF
from recurve.ops import recurrent
from recurve.ops._aliases import alias

LSTM, GRU, RNN, GRU_BEFORE = range(4)  # cells, as in csrc/cpu/kernels.h
GATES = {LSTM: 4, GRU: 3, RNN: 1, GRU_BEFORE: 3}
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "tanh", "sigmoid")  # by code, as in csrc/core/activation.h


def register() -> None:
    """Attach the rules to the compiled ops."""
    torch.library.register_fake("recurve::lstm", _fake_lstm)
    torch.library.register_fake("recurve::gru", _fake_without_cell)
    torch.library.register_fake("recurve::rnn", _fake_without_cell)
    torch.library.register_fake("recurve::sequence_forward", _fake_forward)
    torch.library.register_fake("recurve::sequence_backward", _fake_backward)
    torch.library.register_autograd("recurve::sequence_backward", _double_backward, setup_context=_keep_inputs)
    for name, states in (("lstm", 2), ("gru", 1), ("rnn", 1)):
        torch.library.register_vmap(f"recurve::{name}", _vmap_rule(getattr(torch.ops.recurve, name), states))


def _outputs(x: Tensor, h0: Tensor, w_ih: Tensor) -> tuple[Tensor, Tensor]:
    """Empty y and h_n of a call."""
    for what, tensor in (("h0", h0), ("w_ih", w_ih)):
        if tensor.device != x.device:
            raise RuntimeError(f"{what} is on {tensor.device}, x on {x.device}; move one of them")
    ensemble, hidden = w_ih.shape[:-2], h0.shape[-1]
    steps, batch = x.shape[-3], x.shape[-2]
    return x.new_empty(*ensemble, steps, batch, hidden), x.new_empty(*ensemble, batch, hidden)


def _fake_lstm(x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, h_n = _outputs(x, h0, w_ih)
    return y, h_n, torch.empty_like(h_n)


def _fake_without_cell(x: Tensor, h0: Tensor, w_ih: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(x, h0, w_ih)


def _fake_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: int,
    reverse: bool,
    activation: int,
    leak: float,
    keep: bool,
) -> tuple[Tensor, ...]:
    y, h_n = _outputs(x, h0, w_ih)
    models = w_ih.shape[0] if w_ih.dim() == 3 else 1
    steps, batch, hidden = x.shape[-3], x.shape[-2], h0.shape[-1]
    gates = x.new_empty(models, steps, batch, GATES[cell] * hidden) if keep else x.new_empty(0)
    sums = torch.float32 if x.dtype in HALF else x.dtype
    aux = x.new_empty(models, steps, batch, hidden, dtype=sums) if keep and cell != RNN else x.new_empty(0)
    return y, h_n, torch.empty_like(h_n) if cell == LSTM else x.new_empty(0), gates, aux


def _fake_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    y: Tensor,
    gates: Tensor,
    aux: Tensor,
    cell: int,
    reverse: bool,
    activation: int,
    leak: float,
    need_x: bool,
    need_weights: bool,
    probe: bool,
) -> tuple[Tensor, ...]:
    def like(t: Tensor | None, needed: bool) -> Tensor:
        return x.new_empty(0) if t is None or not needed else t.new_empty(t.shape)

    weights = tuple(like(t, need_weights) for t in (w_ih, w_hh, b_ih, b_hh))
    norms = (w_ih.shape[0] if w_ih.dim() == 3 else 1, x.shape[-3])
    dh_norms = x.new_empty(norms if probe else (0,))
    dc_norms = x.new_empty(norms if probe and cell == LSTM else (0,))
    return like(x, need_x), like(h0, True), like(c0, True), *weights, dh_norms, dc_norms


# In the arguments of sequence_backward: the incoming gradients, then the call's tensors.
INCOMING, TENSORS = slice(0, 3), slice(3, 12)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[INCOMING], *inputs[TENSORS])
    ctx.options = inputs[15:19]
    ctx.arguments = len(inputs)


def _double_backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradient of the backward pass, through the reference: slow, and right to any order."""
    saved = ctx.saved_tensors
    incoming, tensors = saved[INCOMING], saved[TENSORS]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [None if t is None else alias(t) for t in tensors]
        grads = [None if g is None else alias(g) for g in incoming]
        with _probe.paused():
            outputs = _reference(leaves, ctx.options)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None]
        wanted = [t for t in leaves[:7] if t is not None]
        first = torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
        )
        by_place = iter(first)
        inner = [None if t is None else next(by_place) for t in leaves[:7]]
        outer_pairs = [(i, o) for i, o in zip(inner, outer, strict=False) if i is not None and _matches(i, o)]
        if not outer_pairs:
            return (None,) * ctx.arguments
        targets = [t for t in (*grads, *leaves[:7]) if t is not None]
        second = iter(
            torch.autograd.grad(
                [i for i, _ in outer_pairs],
                targets,
                [o for _, o in outer_pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    result = [None if t is None else next(second) for t in (*grads, *leaves[:7])]
    return (*result, *[None] * (ctx.arguments - len(result)))


def _matches(inner: Tensor, outer: Tensor | None) -> bool:
    return inner.requires_grad and outer is not None and outer.shape == inner.shape


def _reference(tensors: list[Tensor | None], options: tuple[int, bool, int, float]) -> tuple[Tensor, ...]:
    cell, reverse, activation, leak = options
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets = tensors
    where: dict[str, Any] = {"lengths": lengths, "resets": resets, "reverse": reverse}
    weights: Any = (w_ih, w_hh, b_ih, b_hh)
    if cell == LSTM:
        return recurrent.lstm_reference(x, h0, c0, *weights, **where)  # type: ignore[arg-type]
    if cell in (GRU, GRU_BEFORE):
        reset: Any = "after" if cell == GRU else "before"
        return recurrent.gru_reference(x, h0, *weights, reset=reset, **where)  # type: ignore[arg-type]
    name: Any = ACTIVATIONS[activation]
    return recurrent.rnn_reference(x, h0, *weights, activation=name, leak=leak, **where)  # type: ignore[arg-type]


def _vmap_rule(op: Callable[..., Any], states: int) -> Callable[..., Any]:
    """vmap becomes the ensemble axis; over the data alone, with shared weights, it becomes a larger batch."""
    tensors = 1 + states + 4  # x, states, weights and biases

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        models = info.batch_size
        if any(d is not None for d in in_dims[tensors : tensors + 2]):
            raise NotImplementedError("vmap over lengths or resets is not supported; vmap over the other tensors")
        if args[1 + states].dim() - (in_dims[1 + states] is not None) == 3:
            raise NotImplementedError("vmap over a call that has an ensemble axis already; use one or the other")
        front = [t if d is None else t.movedim(d, 0) for t, d in zip(args[:tensors], in_dims, strict=False)]
        if all(d is None for d in in_dims[1 + states : tensors]):
            data = [
                t if d is not None else t.expand(models, *t.shape)
                for t, d in zip(front[: 1 + states], in_dims, strict=False)
            ]
            outputs = _larger_batch(op, models, data, [*front[1 + states :], *args[tensors:]])
        else:
            weights = [
                t if t is None or d is not None else t.expand(models, *t.shape)
                for t, d in zip(front[1 + states :], in_dims[1 + states :], strict=False)
            ]
            outputs = op(*front[: 1 + states], *weights, *args[tensors:])
        return outputs, (0,) * len(outputs)

    return rule


def _larger_batch(op: Callable[..., Any], models: int, data: list[Tensor], rest: list[Any]) -> tuple[Tensor, ...]:
    """Input (E, T, B, I) and states (E, B, H) as one batch of E B sequences."""
    *weights, lengths, resets = rest[:6]
    lengths = None if lengths is None else lengths.repeat(models)
    resets = None if resets is None else resets.repeat(1, models)
    x, *state = data
    batch = x.shape[2]
    y, *last = op(
        x.transpose(0, 1).flatten(1, 2), *(s.flatten(0, 1) for s in state), *weights, lengths, resets, *rest[6:]
    )
    return y.unflatten(1, (models, batch)).transpose(0, 1), *(s.unflatten(0, (models, batch)) for s in last)
