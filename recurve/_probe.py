"""What a probe records of the recurrent ops: saturated gates, and the norms of the gradients of each step's state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recurve import _extension

GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}


@dataclass(frozen=True)
class ProbedCall:
    """One call of a recurrent op: one layer in one direction over all steps.

    Attributes:
        op: "lstm", "gru" or "rnn".
        gates: names of the gates, in the order of the last axis of `saturated`.
        saturated: (T, gates), or (E, T, gates) of an ensemble: the share, over sequences and units, of gates whose
            activation has less than 0.36 of its largest slope: a sigmoid outside (0.1, 0.9), a tanh outside
            (-0.8, 0.8), a relu at zero. Not-a-number where all sequences have ended.
        dh_norms: (T,) or (E, T): the norm over sequences and units of dL/dh_t; not-a-number before a backward pass.
        dc_norms: likewise of dL/dc_t, for an LSTM, else None.
    """

    op: str
    gates: tuple[str, ...]
    saturated: Tensor
    dh_norms: Tensor
    dc_norms: Tensor | None


class Probe:
    """The calls that a probe has seen, in their order."""

    def __init__(self) -> None:
        self._fused: list[ProbedCall] = []
        self._reference: list[tuple[int, ProbedCall]] = []  # with the place in the order of all calls
        self._ended = False

    @property
    def calls(self) -> list[ProbedCall]:
        """All calls so far."""
        calls = list(self._fused if self._ended else _fused_calls())
        for place, call in self._reference:
            calls.insert(place, call)
        return calls

    def add(self, call: ProbedCall) -> None:
        """Take a call of a reference into the record."""
        self._reference.append((len(self.calls), call))

    def _end(self) -> None:
        self._fused, self._ended = _fused_calls(), True


class _Active(threading.local):
    """Of this thread: its probes, and where they are paused None, the innermost last."""

    def __init__(self) -> None:
        self.probes: list[Probe | None] = []


_active = _Active()


def active() -> Probe | None:
    """The innermost probe, or None."""
    return _active.probes[-1] if _active.probes else None


@contextmanager
def paused() -> Iterator[None]:
    """Hide what runs in the block from the probe."""
    _active.probes.append(None)
    try:
        yield
    finally:
        _active.probes.pop()


@contextmanager
def probe() -> Iterator[Probe]:
    """Record what happens inside the LSTM, GRU and RNN modules and ops that run within the block.

    The record is a by-product of the forward and the backward pass; the backward pass may come after the block.
    Without a probe nothing is computed. Calls inside `torch.compile` and in other threads are not seen.

        with recurve.nn.probe() as record:
            loss = model(x).square().mean()
        loss.backward()
        record.calls[0].dh_norms  # (T,)
    """
    record = Probe()
    compiled: Any = _extension.module()
    if compiled is not None:
        compiled.probe_begin()
    _active.probes.append(record)
    try:
        yield record
    finally:
        record._end()
        _active.probes.pop()
        if compiled is not None:
            compiled.probe_end()


def _fused_calls() -> list[ProbedCall]:
    compiled: Any = _extension.module()
    entries = [] if compiled is None else compiled.probe_entries()
    return [ProbedCall(e.op, GATES[e.op], e.saturated, e.dh_norms, e.dc_norms) for e in entries]


class ReferenceCall:
    """Records a call of a reference step by step, by hooks on its states; `shape` is (T,) or (E, T)."""

    def __init__(self, op: str, activations: Sequence[str], shape: tuple[int, ...], like: Tensor) -> None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(
                f"a probe sees {op} under torch.vmap and torch.func only where its fused kernel runs; "
                "leave the transform or the probe, or see recurve.status() for why the kernel does not serve"
            )
        self._activations = activations
        self._backward_began = False
        self._saturated = like.new_full((*shape, len(activations)), torch.nan)
        self._norms = [like.new_full(shape, torch.nan) for _ in range(2 if op == "lstm" else 1)]
        self.call = ProbedCall(op, GATES[op], self._saturated, self._norms[0], self._norms[1] if op == "lstm" else None)

    def see(self, t: int, gates: Sequence[Tensor], states: Sequence[Tensor], active: Tensor | None) -> None:
        """One step: its activated gates (..., B, H), its new states, and which sequences (B,) have not ended."""
        with torch.no_grad():
            rows = slice(None) if active is None else active
            for place, (gate, activation) in enumerate(zip(gates, self._activations, strict=True)):
                share = is_saturated(gate[..., rows, :], activation).to(self._saturated.dtype).mean((-2, -1))
                self._saturated[..., t, place] = share
        for norms, state in zip(self._norms, states, strict=True):
            if state.requires_grad:
                state.register_hook(self._keep_norm(norms, t))

    def _keep_norm(self, norms: Tensor, t: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            with torch.no_grad():
                if not self._backward_began:  # a state that no gradient reaches has a gradient of zero
                    for all_norms in self._norms:
                        all_norms.zero_()
                    self._backward_began = True
                norms[..., t] = gradient.flatten(-2).norm(dim=-1)

        return hook


def is_saturated(value: Tensor, activation: str) -> Tensor:
    """Where an activated value lies on a flat part of its activation; see `ProbedCall`."""
    if activation == "sigmoid":
        return (value < 0.1) | (value > 0.9)
    return value.abs() > 0.8 if activation == "tanh" else value <= 0
