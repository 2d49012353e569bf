"""JAX as a peer: recurrent networks as `lax.scan`, ensembles as its `vmap`, convolutions by XLA, each step jitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import Tensor, nn

from bench.cases import Case, Cell, Convolution, Ensemble, Mode, Recurrent, input_gradient
from bench.peers import NotServed
from bench.protocol import Competitor, Sample

Array = Any
Forward = Callable[[Any, Array], tuple[Array, ...]]  # of weights and input; the first output is what has a gradient


def competitor(case: Case, models: Sequence[nn.Module]) -> Competitor:
    if models and next(models[0].parameters()).is_cuda:
        raise NotServed("is raced on the CPU only")
    weights = [[_array(weight) for weight in model.parameters()] for model in models]
    if isinstance(case, Convolution):
        return _competitor(_convolution(case), weights[0], case.mode, input_gradient(case.in_channels))
    if isinstance(case, Ensemble):
        stacked = [jnp.stack(same) for same in zip(*weights, strict=True)]
        member = CELLS[case.cell]
        each = jax.vmap(lambda w, x: member(w, x)[:1])
        return _competitor(each, stacked, case.mode, input_gradient(case.input_size))
    if isinstance(case, Recurrent) and case.layers == 1 and not case.bidirectional:
        return _competitor(CELLS[case.cell], weights[0], case.mode, input_gradient(case.input_size))
    raise NotServed("the scan is written for one layer in one direction")


def _competitor(forward: Forward, weights: Any, mode: Mode, wants_input: bool) -> Competitor:
    @jax.jit
    def infer(x: Array) -> tuple[Array, ...]:
        return forward(weights, x)

    @jax.jit
    def train(x: Array, cotangent: Array) -> tuple[Array, ...]:
        def first(w: Any, x: Array) -> tuple[Array, tuple[Array, ...]]:
            outputs = forward(w, x)
            return outputs[0], outputs

        if wants_input:
            _, pull, outputs = jax.vjp(first, weights, x, has_aux=True)
            w_gradients, x_gradient = pull(cotangent)
            return (*outputs, *w_gradients, x_gradient)
        _, pull, outputs = jax.vjp(lambda w: first(w, x), weights, has_aux=True)
        return (*outputs, *pull(cotangent)[0])

    def run(arrays: tuple[Array, Array]) -> tuple[Array, ...]:
        return jax.block_until_ready(train(*arrays) if mode == "train" else infer(arrays[0]))

    return Competitor(run, answer=_tensors, prepare=_arrays, foreign=True)


def _lstm(weights: Any, x: Array) -> tuple[Array, ...]:
    w_ih, w_hh, b_ih, b_hh = weights

    def step(state: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = state
        i, f, g, o = jnp.split(gates + h @ w_hh.T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], w_hh.shape[1]))
    (h, c), y = lax.scan(step, (zeros, zeros), x @ w_ih.T + (b_ih + b_hh))
    return y, h[None], c[None]


def _gru(weights: Any, x: Array) -> tuple[Array, ...]:
    w_ih, w_hh, b_ih, b_hh = weights

    def step(h: Array, gates: Array) -> tuple[Array, Array]:
        (r, z, n), (hr, hz, hn) = jnp.split(gates, 3, axis=-1), jnp.split(h @ w_hh.T + b_hh, 3, axis=-1)
        z = jax.nn.sigmoid(z + hz)
        n = jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
        h = (1 - z) * n + z * h
        return h, h

    h, y = lax.scan(step, jnp.zeros((x.shape[1], w_hh.shape[1])), x @ w_ih.T + b_ih)
    return y, h[None]


def _rnn(weights: Any, x: Array) -> tuple[Array, ...]:
    w_ih, w_hh, b_ih, b_hh = weights

    def step(h: Array, gates: Array) -> tuple[Array, Array]:
        h = jnp.tanh(gates + h @ w_hh.T)
        return h, h

    h, y = lax.scan(step, jnp.zeros((x.shape[1], w_hh.shape[1])), x @ w_ih.T + (b_ih + b_hh))
    return y, h[None]


CELLS: dict[Cell, Forward] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _convolution(case: Convolution) -> Forward:
    pad = case.kernel // 2
    groups = case.in_channels if case.depthwise else 1

    def forward(weights: Any, x: Array) -> tuple[Array, ...]:
        weight, bias = weights
        y = lax.conv_general_dilated(x, weight, (1, 1), [(pad, pad)] * 2, feature_group_count=groups)
        y = jax.nn.relu(y + bias[:, None, None])
        return (lax.reduce_window(y, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"),)

    return forward


def _array(tensor: Tensor) -> Array:
    return jnp.asarray(tensor.detach().numpy())


def _arrays(sample: Sample) -> tuple[Array, ...]:
    return tuple(jax.block_until_ready(_array(tensor)) for tensor in sample)


def _tensors(outputs: Sequence[Array]) -> list[Tensor]:
    return [torch.tensor(np.asarray(output)) for output in outputs]
