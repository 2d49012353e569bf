"""What is benchmarked, declared as data: a line in RECURRENT, ENSEMBLES or CONVOLUTIONS is a case."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

import recurve
from bench.protocol import NATIVE, OURS, Competitor, Problem, Sample

Cell = Literal["LSTM", "GRU"]
Mode = Literal["train", "infer"]

SAMPLES = 4
GATES = {"LSTM": 4, "GRU": 3}
DATA_CHANNELS = 3  # an input this narrow is taken for data, which needs no gradient
UNDECIDED = 1e-4  # a lead within a pooling window that rounding in float32 may turn


class Case(Protocol):
    """A step to be timed: its place in the table, its arithmetic, and who computes it on what."""

    @property
    def group(self) -> str:
        """Cases that are averaged together, as `recurrent-LSTM-train`."""

    @property
    def shape(self) -> str:
        """What sets the case apart in its group, as `T30-B32-I3-H32`."""

    @property
    def flops(self) -> int:
        """Multiplications and additions of the step's matrix products or convolutions."""

    def problem(self) -> Problem:
        """Inputs, competitors and reference; the same at every call."""


@dataclass(frozen=True)
class Recurrent:
    """A recurrent network over whole sequences against torch.nn's module of the same name."""

    cell: Cell
    mode: Mode
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False

    @property
    def group(self) -> str:
        return f"recurrent-{self.cell}-{self.mode}"

    @property
    def shape(self) -> str:
        shape = f"T{self.steps}-B{self.batch}-I{self.input_size}-H{self.hidden_size}"
        return (
            shape + (f"-L{self.layers}" if self.layers > 1 else "") + ("-bidirectional" if self.bidirectional else "")
        )

    @property
    def flops(self) -> int:
        directions = 1 + self.bidirectional
        per_column = 2 * self.steps * self.batch * GATES[self.cell] * self.hidden_size * directions
        inner = directions * self.hidden_size * (self.layers - 1)
        forward = per_column * (self.input_size + inner + self.hidden_size * self.layers)
        no_gradient = 0 if _input_gradient(self.input_size) else per_column * self.input_size
        return forward if self.mode == "infer" else 3 * forward - no_gradient

    def problem(self) -> Problem:
        torch.manual_seed(0)
        arguments = (self.input_size, self.hidden_size, self.layers)
        native = getattr(torch.nn, self.cell)(*arguments, bidirectional=self.bidirectional)
        ours = getattr(recurve.nn, self.cell)(*arguments, bidirectional=self.bidirectional)
        width = self.hidden_size * (1 + self.bidirectional)
        samples = [
            (torch.randn(self.steps, self.batch, self.input_size), torch.randn(self.steps, self.batch, width))
            for _ in range(SAMPLES)
        ]
        return _modules_problem(samples, ours, native, self.mode, _input_gradient(self.input_size))


@dataclass(frozen=True)
class Ensemble:
    """Many recurrent networks of one layer, each on its own input: one call against a loop over torch.nn modules."""

    cell: Cell
    mode: Mode
    models: int
    steps: int
    batch: int
    input_size: int
    hidden_size: int

    @property
    def group(self) -> str:
        return f"ensemble-{self.cell}-{self.mode}"

    @property
    def shape(self) -> str:
        return f"E{self.models}-{self._member.shape}"

    @property
    def flops(self) -> int:
        return self.models * self._member.flops

    @property
    def _member(self) -> Recurrent:
        return Recurrent(self.cell, self.mode, self.steps, self.batch, self.input_size, self.hidden_size)

    def problem(self) -> Problem:
        torch.manual_seed(0)
        natives = [getattr(torch.nn, self.cell)(self.input_size, self.hidden_size) for _ in range(self.models)]
        sequences = (self.models, self.steps, self.batch)
        samples = [
            (torch.randn(*sequences, self.input_size), torch.randn(*sequences, self.hidden_size))
            for _ in range(SAMPLES)
        ]
        return Problem(
            samples,
            {OURS: self._one_call(natives), NATIVE: self._loop(natives)},
            self._loop([copy.deepcopy(native).double() for native in natives]),
        )

    def _one_call(self, natives: Sequence[torch.nn.Module]) -> Competitor:
        every = zip(*(native.parameters() for native in natives), strict=True)
        weights = [torch.stack(same).detach().requires_grad_() for same in every]
        op = getattr(recurve.ops, self.cell.lower())
        states = 2 if self.cell == "LSTM" else 1

        def forward(x: Tensor) -> Tensor:
            zeros = x.new_zeros(self.models, self.batch, self.hidden_size)
            return op(x, *(zeros,) * states, *weights)[0]

        return Competitor(_step(forward, weights, self.mode, _input_gradient(self.input_size)))

    def _loop(self, natives: Sequence[torch.nn.Module]) -> Competitor:
        def step(native: torch.nn.Module) -> Callable[[Sample], list[Tensor]]:
            weights = list(native.parameters())
            return _step(lambda x: native(x)[0], weights, self.mode, _input_gradient(self.input_size))

        steps = [step(native) for native in natives]

        def run(sample: Sample) -> list[list[Tensor]]:
            return [step(own) for step, *own in zip(steps, *sample, strict=True)]

        return Competitor(run, lambda answers: [torch.stack(same) for same in zip(*answers, strict=True)])


@dataclass(frozen=True)
class Convolution:
    """Convolution, ReLU and 2x2 max pooling in one pass against F.conv2d, F.relu and F.max_pool2d.

    The image is square with sides of `size` pixels and is padded so that the convolution keeps them.
    """

    mode: Mode
    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel: int
    depthwise: bool = False

    @property
    def group(self) -> str:
        return f"conv-{self.mode}"

    @property
    def shape(self) -> str:
        shape = f"B{self.batch}-C{self.in_channels}-O{self.out_channels}-S{self.size}-K{self.kernel}"
        return shape + ("-depthwise" if self.depthwise else "")

    @property
    def flops(self) -> int:
        taps = self.kernel**2 * (1 if self.depthwise else self.in_channels)
        forward = 2 * self.batch * self.out_channels * self.size**2 * taps
        return forward * (1 if self.mode == "infer" else 3 if _input_gradient(self.in_channels) else 2)

    def problem(self) -> Problem:
        torch.manual_seed(0)
        groups = self.in_channels if self.depthwise else 1
        arguments = (self.in_channels, self.out_channels, self.kernel)
        ours = recurve.nn.ConvBlock(*arguments, padding=self.kernel // 2, groups=groups)
        native = _NativeBlock(*arguments, padding=self.kernel // 2, groups=groups)
        images = [torch.randn(self.batch, self.in_channels, self.size, self.size) for _ in range(SAMPLES)]
        samples = [(x, _cotangent(torch.nn.Conv2d.forward(native, x))) for x in images]
        return _modules_problem(samples, ours, native, self.mode, _input_gradient(self.in_channels))


class _NativeBlock(torch.nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(super().forward(input)), 2)


def _cotangent(convolved: Tensor) -> Tensor:
    """A random gradient of the pooled output, zero where rounding decides which pixel of a window gets it.

    There the gradient is not determined by the mathematics, and right answers differ.
    """
    windows = convolved.detach().unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    first, second = windows.topk(2).values.unbind(-1)
    decided = (first < -UNDECIDED) | ((first > UNDECIDED) & (first - second > UNDECIDED))
    return torch.randn_like(first) * decided


def _input_gradient(width: int) -> bool:
    return width > DATA_CHANNELS


def _modules_problem(
    samples: Sequence[Sample], ours: torch.nn.Module, native: torch.nn.Module, mode: Mode, input_gradient: bool
) -> Problem:
    ours.load_state_dict(native.state_dict())

    def competitor(module: torch.nn.Module) -> Competitor:
        module.train(mode == "train")
        return Competitor(_step(module, list(module.parameters()), mode, input_gradient))

    reference = copy.deepcopy(native).double()
    return Problem(samples, {OURS: competitor(ours), NATIVE: competitor(native)}, competitor(reference))


def _step(
    forward: Callable[[Tensor], Any], parameters: Sequence[Tensor], mode: Mode, input_gradient: bool
) -> Callable[[Sample], list[Tensor]]:
    """One step on (input, gradient of the first output): all outputs and, in training, all gradients asked for."""

    def infer(sample: Sample) -> list[Tensor]:
        with torch.no_grad():
            return _flat(forward(sample[0]))

    def train(sample: Sample) -> list[Tensor]:
        x, cotangent = sample
        x = x.detach().requires_grad_(input_gradient)
        outputs = _flat(forward(x))
        wanted = [*parameters, x] if input_gradient else parameters
        return [*outputs, *torch.autograd.grad(outputs[0], wanted, cotangent)]

    return train if mode == "train" else infer


def _flat(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [leaf for part in outputs for leaf in _flat(part)]


CELLS: tuple[Cell, ...] = ("LSTM", "GRU")
MODES: tuple[Mode, ...] = ("train", "infer")

RECURRENT = [
    Recurrent(cell, mode, *case)
    for cell in CELLS
    for mode in MODES
    for case in (  # steps, batch, input_size, hidden_size, layers, bidirectional
        (30, 32, 3, 32),
        (60, 64, 3, 64),
        (14, 256, 1, 64),
        (28, 64, 28, 128),
        (100, 1, 64, 128),
        (50, 32, 128, 256),
        (150, 16, 256, 256),
        (25, 64, 512, 512),
        (25, 32, 1024, 1024),
        (60, 64, 3, 64, 2),
        (28, 64, 28, 128, 1, True),
    )
]

ENSEMBLES = [Ensemble(cell, "train", 32, 30, 32, 3, 32) for cell in CELLS]

CONVOLUTIONS = [
    Convolution(mode, *case)
    for mode in MODES
    for case in (  # batch, in_channels, out_channels, size, kernel, depthwise
        (64, 1, 16, 28, 3),
        (64, 16, 32, 14, 3),
        (64, 32, 64, 7, 3),
        (64, 3, 32, 32, 3),
        (64, 32, 64, 32, 3),
        (64, 64, 64, 16, 3),
        (64, 1, 6, 28, 5),
        (16, 64, 64, 56, 3),
        (64, 64, 128, 16, 1),
        (64, 64, 64, 16, 3, True),
        (64, 64, 64, 16, 7, True),
        (1, 3, 32, 32, 3),
        (1, 64, 64, 16, 3),
    )
]
