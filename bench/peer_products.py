"""A yardstick: the products of a recurrent layer alone, by torch's matrix product, with gates that cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import Case, Ensemble, Recurrent, input_gradient
from bench.peers import NotServed
from bench.protocol import Competitor, Sample


def competitor(case: Case, models: Sequence[nn.Module]) -> Competitor:
    """W x of all steps in one product, U h in one for each step, and, in training, those of the gradients likewise."""
    if isinstance(case, Ensemble) or not isinstance(case, Recurrent) or case.layers > 1 or case.bidirectional:
        raise NotServed("products alone are timed for one layer in one direction")
    w_ih, w_hh, *_ = (weight.detach() for weight in models[0].parameters())
    states = torch.rand(case.steps, case.batch, case.hidden_size, device=w_hh.device)
    gates = torch.empty(case.steps, case.batch, len(w_hh), device=w_hh.device)
    all_states, all_gates = states.flatten(0, 1), gates.flatten(0, 1)
    gradient = torch.empty_like(states[0])

    @torch.no_grad()
    def forward(sample: Sample) -> list[Tensor]:
        torch.mm(sample[0].flatten(0, 1), w_ih.t(), out=all_gates)
        for state, gate in zip(states, gates, strict=True):
            torch.mm(state, w_hh.t(), out=gate)
        return []

    @torch.no_grad()
    def backward(sample: Sample, _: Any) -> list[Tensor]:
        x = sample[0].flatten(0, 1)
        for gate in reversed(gates.unbind()):
            torch.mm(gate, w_hh, out=gradient)
        torch.mm(all_gates.t(), all_states)
        torch.mm(all_gates.t(), x)
        if input_gradient(case.input_size):
            torch.mm(all_gates, w_ih)
        return []

    return Competitor(forward, backward if case.mode == "train" else None, judged=False)
