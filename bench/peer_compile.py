"""torch.compile as a peer: the plain loop over a cell's equations, as one would write it, compiled whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases import Case, Cell, Convolution, Ensemble, Recurrent, competitor_of, input_gradient
from bench.peers import NotServed
from bench.protocol import Competitor

LONGEST = 64  # steps: the loop is unrolled, and longer ones compile for minutes


def competitor(case: Case, models: Sequence[nn.Module]) -> Competitor:
    if isinstance(case, Convolution):
        block, width = models[0], case.in_channels
        return competitor_of(torch.compile(block), list(block.parameters()), case.mode, input_gradient(width))
    if isinstance(case, Ensemble) or not isinstance(case, Recurrent) or case.layers > 1 or case.bidirectional:
        raise NotServed("the plain loop is written for one layer in one direction")
    if case.steps > LONGEST:
        raise NotServed(f"a loop of more than {LONGEST} steps compiles for minutes")
    weights = [weight.detach().clone().requires_grad_() for weight in models[0].parameters()]
    loop = torch.compile(LOOPS[case.cell])
    return competitor_of(lambda x: loop(x, *weights), weights, case.mode, input_gradient(case.input_size))


def lstm(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = c = x.new_zeros(x.shape[1], w_hh.shape[1])
    states = []
    for gates in F.linear(x, w_ih, b_ih):
        i, f, g, o = (gates + F.linear(h, w_hh, b_hh)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states), h[None], c[None]


def gru(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    h = x.new_zeros(x.shape[1], w_hh.shape[1])
    states = []
    for gates in F.linear(x, w_ih, b_ih):
        (r, z, n), (hr, hz, hn) = gates.chunk(3, 1), F.linear(h, w_hh, b_hh).chunk(3, 1)
        z = (z + hz).sigmoid()
        n = (n + (r + hr).sigmoid() * hn).tanh()
        h = (1 - z) * n + z * h
        states.append(h)
    return torch.stack(states), h[None]


def rnn(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    h = x.new_zeros(x.shape[1], w_hh.shape[1])
    states = []
    for gates in F.linear(x, w_ih, b_ih):
        h = (gates + F.linear(h, w_hh, b_hh)).tanh()
        states.append(h)
    return torch.stack(states), h[None]


LOOPS: dict[Cell, Callable[..., tuple[Tensor, ...]]] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
