"""The kinds of cases: a recurrent network, an ensemble of them, a convolution block; what each computes and moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

import recurve
from bench.protocol import NATIVE, OURS, Competitor, Problem, Sample, coarser

Cell = Literal["LSTM", "GRU", "RNN"]
Mode = Literal["train", "infer"]
CELLS: tuple[Cell, ...] = get_args(Cell)
MODES: tuple[Mode, ...] = get_args(Mode)

SAMPLES = 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
BYTES = 4  # of a float32
DATA_CHANNELS = 3  # an input this narrow is taken for data, which needs no gradient
UNDECIDED = 1e-4  # a lead within a pooling window that rounding in float32 may turn
WINOGRAD = 4  # the 3x3 convolution with fewest multiplications in use, F(4x4, 3x3), does a quarter of the direct one's
WINDOW = 4  # pixels of a pooling window, of which one has a gradient


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
        """Multiplications and additions of the step's matrix products or convolutions, computed directly; gradients
        only where a pooled pixel won."""

    @property
    def least_flops(self) -> int:
        """The same by the most frugal algorithm in use: no right answer comes with less."""

    @property
    def bytes(self) -> int:
        """Inputs, weights, outputs and gradients, each moved once."""

    def problem(self, seed: int = 0, device: str = "cpu") -> Problem:
        """Inputs, competitors and reference; the same at every call with the same seed."""


def name_of(case: Case) -> str:
    """`recurrent-LSTM-train-T30-B32-I3-H32`."""
    return f"{case.group}-{case.shape}"


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
        return self._flops(self.steps)

    @property
    def least_flops(self) -> int:
        return self._flops(self.steps - 1)  # nothing is to be multiplied with the zeros at the start

    @property
    def bytes(self) -> int:
        inputs, outputs = self._rows * self.input_size, self._rows * self._directions * self.hidden_size
        weights = GATES[self.cell] * self.hidden_size * sum(i + self.hidden_size + 2 for i in self._input_sizes)
        if self.mode == "infer":
            return BYTES * (inputs + weights + outputs)
        return BYTES * (inputs * (1 + input_gradient(self.input_size)) + 2 * weights + 2 * outputs)

    def problem(self, seed: int = 0, device: str = "cpu") -> Problem:
        torch.manual_seed(seed)
        arguments = (self.input_size, self.hidden_size, self.layers)
        native = getattr(torch.nn, self.cell)(*arguments, bidirectional=self.bidirectional)
        ours = getattr(recurve.nn, self.cell)(*arguments, bidirectional=self.bidirectional)
        width = self.hidden_size * self._directions
        samples = [
            (torch.randn(self.steps, self.batch, self.input_size), torch.randn(self.steps, self.batch, width))
            for _ in range(SAMPLES)
        ]
        return _modules_problem(samples, ours, native, self.mode, input_gradient(self.input_size), device)

    def _flops(self, hidden_steps: int) -> int:
        per_step = 2 * self.batch * GATES[self.cell] * self.hidden_size
        inputs = [per_step * self.steps * width for width in self._input_sizes]
        hidden = per_step * hidden_steps * self.hidden_size * len(inputs)
        if self.mode == "infer":
            return sum(inputs) + hidden
        no_gradient = 0 if input_gradient(self.input_size) else sum(inputs[: self._directions])
        return 3 * (sum(inputs) + hidden) - no_gradient

    @property
    def _directions(self) -> int:
        return 1 + self.bidirectional

    @property
    def _rows(self) -> int:
        return self.steps * self.batch

    @property
    def _input_sizes(self) -> list[int]:
        """Of every direction of every layer."""
        inner = [self._directions * self.hidden_size] * (self.layers - 1)
        return [width for width in [self.input_size, *inner] for _ in range(self._directions)]


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
        return f"E{self.models}-{self.member.shape}"

    @property
    def flops(self) -> int:
        return self.models * self.member.flops

    @property
    def least_flops(self) -> int:
        return self.models * self.member.least_flops

    @property
    def bytes(self) -> int:
        return self.models * self.member.bytes

    @property
    def member(self) -> Recurrent:
        return Recurrent(self.cell, self.mode, self.steps, self.batch, self.input_size, self.hidden_size)

    def problem(self, seed: int = 0, device: str = "cpu") -> Problem:
        torch.manual_seed(seed)
        natives = [getattr(torch.nn, self.cell)(self.input_size, self.hidden_size) for _ in range(self.models)]
        sequences = (self.models, self.steps, self.batch)
        samples = [
            (torch.randn(*sequences, self.input_size), torch.randn(*sequences, self.hidden_size))
            for _ in range(SAMPLES)
        ]
        reference = self._loop([copy.deepcopy(native).double().to(device) for native in natives])
        natives = [native.to(device) for native in natives]
        competitors = {OURS: self._one_call(natives), NATIVE: self._loop(natives)}
        return Problem(_moved(samples, device), competitors, reference, natives)

    def _one_call(self, natives: Sequence[torch.nn.Module]) -> Competitor:
        every = zip(*(native.parameters() for native in natives), strict=True)
        weights = [torch.stack(same).detach().requires_grad_() for same in every]
        op = getattr(recurve.ops, self.cell.lower())
        states = 2 if self.cell == "LSTM" else 1

        def forward(x: Tensor) -> Tensor:
            zeros = x.new_zeros(self.models, self.batch, self.hidden_size)
            return op(x, *(zeros,) * states, *weights)[0]

        return competitor_of(forward, weights, self.mode, input_gradient(self.input_size))

    def _loop(self, natives: Sequence[torch.nn.Module]) -> Competitor:
        """Each model's whole step after the other's: nobody keeps the graphs of all of them."""

        def step(native: torch.nn.Module) -> Callable[[Sample], list[Tensor]]:
            weights = list(native.parameters())
            one = competitor_of(lambda x: native(x)[0], weights, self.mode, input_gradient(self.input_size))
            return lambda sample: one.run(sample)[0]

        steps = [step(native) for native in natives]
        return Competitor(
            lambda sample: [step(own) for step, *own in zip(steps, *sample, strict=True)],
            answer=lambda answers: [torch.stack(same) for same in zip(*answers, strict=True)],
        )


@dataclass(frozen=True)
class Convolution:
    """Convolution, ReLU and 2x2 max pooling in one pass against F.conv2d, F.relu and F.max_pool2d.

    The image is square with sides of `size` pixels and is padded so that the convolution keeps them. With `nhwc`, the
    channels of images and of torch's weights come last in memory.
    """

    mode: Mode
    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel: int
    depthwise: bool = False
    nhwc: bool = False

    @property
    def group(self) -> str:
        return f"conv-{self.mode}"

    @property
    def shape(self) -> str:
        shape = f"B{self.batch}-C{self.in_channels}-O{self.out_channels}-S{self.size}-K{self.kernel}"
        return shape + "".join(f"-{word}" for word in ("depthwise", "nhwc") if getattr(self, word))

    @property
    def flops(self) -> int:
        return self._forward + self._forward * self._gradients // WINDOW

    @property
    def least_flops(self) -> int:
        return self.flops - (self._forward - self._forward // WINOGRAD if self.kernel == 3 else 0)

    @property
    def bytes(self) -> int:
        inputs = self.batch * self.in_channels * self.size**2
        outputs = self.batch * self.out_channels * (self.size // 2) ** 2
        weights = self.out_channels * (self._taps + 1)
        if self.mode == "infer":
            return BYTES * (inputs + weights + outputs)
        return BYTES * (inputs * self._gradients + 2 * weights + 2 * outputs)

    def problem(self, seed: int = 0, device: str = "cpu") -> Problem:
        torch.manual_seed(seed)
        groups = self.in_channels if self.depthwise else 1
        arguments = (self.in_channels, self.out_channels, self.kernel)
        ours = recurve.nn.ConvBlock(*arguments, padding=self.kernel // 2, groups=groups)
        native = _NativeBlock(*arguments, padding=self.kernel // 2, groups=groups)
        layout = torch.channels_last if self.nhwc else torch.contiguous_format
        native.weight.data = native.weight.to(memory_format=layout)
        sides = (self.batch, self.in_channels, self.size, self.size)
        images = [torch.randn(sides).to(memory_format=layout) for _ in range(SAMPLES)]
        undecided = UNDECIDED * coarser(device)
        samples = [(x, _cotangent(torch.nn.Conv2d.forward(native, x), undecided)) for x in images]
        return _modules_problem(samples, ours, native, self.mode, input_gradient(self.in_channels), device)

    @property
    def _taps(self) -> int:
        return self.kernel**2 * (1 if self.depthwise else self.in_channels)

    @property
    def _forward(self) -> int:
        return 2 * self.batch * self.out_channels * self.size**2 * self._taps

    @property
    def _gradients(self) -> int:
        """How many of weight and input get one."""
        return 0 if self.mode == "infer" else 1 + input_gradient(self.in_channels)


class _NativeBlock(torch.nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(super().forward(input)), 2)


def _cotangent(convolved: Tensor, undecided: float) -> Tensor:
    """A random gradient of the pooled output, zero where rounding decides which pixel of a window gets it: leads that
    are no larger than `undecided`.

    There the gradient is not determined by the mathematics, and right answers differ.
    """
    windows = convolved.detach().unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    first, second = windows.topk(2).values.unbind(-1)
    decided = (first < -undecided) | ((first > undecided) & (first - second > undecided))
    return torch.randn_like(first) * decided


def input_gradient(width: int) -> bool:
    return width > DATA_CHANNELS


def _modules_problem(
    samples: Sequence[Sample],
    ours: torch.nn.Module,
    native: torch.nn.Module,
    mode: Mode,
    input_gradient: bool,
    device: str,
) -> Problem:
    ours.load_state_dict(native.state_dict())

    def competitor(module: torch.nn.Module) -> Competitor:
        module.to(device).train(mode == "train")
        return competitor_of(module, list(module.parameters()), mode, input_gradient)

    reference = competitor(copy.deepcopy(native).double())
    return Problem(_moved(samples, device), {OURS: competitor(ours), NATIVE: competitor(native)}, reference, [native])


def _moved(samples: Sequence[Sample], device: str) -> list[Sample]:
    return [tuple(t.to(device) for t in sample) for sample in samples]


def competitor_of(
    forward: Callable[[Tensor], Any], parameters: Sequence[Tensor], mode: Mode, input_gradient: bool
) -> Competitor:
    """A step on (input, gradient of the first output): all outputs and, in training, all gradients asked for."""

    def infer(sample: Sample) -> list[Tensor]:
        with torch.no_grad():
            return _flat(forward(sample[0]))

    def train(sample: Sample) -> tuple[Tensor, list[Tensor]]:
        x = sample[0].detach().requires_grad_(input_gradient)
        return x, _flat(forward(x))

    def backward(sample: Sample, result: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
        x, outputs = result
        wanted = [*parameters, x] if input_gradient else parameters
        return [*outputs, *torch.autograd.grad(outputs[0], wanted, sample[1])]

    return Competitor(train, backward) if mode == "train" else Competitor(infer)


def _flat(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [leaf for part in outputs for leaf in _flat(part)]


def parse(name: str) -> Case:
    """The case of that name: `recurrent-GRU-train-T30-B32-I3-H32`, also with `-L2` and `-bidirectional`;
    `ensemble-LSTM-infer-E32-T30-B32-I3-H32`; `conv-train-B64-C3-O32-S32-K3`, also with `-depthwise` and `-nhwc`.

    Raises:
        ValueError: there is no such kind of case, or a part is missing, unknown or no whole number above 0.
    """
    kind, *words = name.split("-")
    if kind not in SYNTAX:
        raise ValueError(f"case {name!r} is of no known kind; allowed: {', '.join(SYNTAX)}")
    make, cells, sizes, options = SYNTAX[kind]
    cell = [_word(name, words, CELLS)] if cells else []
    mode = _word(name, words, MODES)
    required = [_size(name, words, letter) for letter in sizes]
    optional: dict[str, Any] = {}
    for word in words:
        if word in options:
            optional[word] = True
        elif word[:1] == "L" and "L" in options:
            optional["layers"] = _size(name, [word], "L")
        else:
            raise ValueError(f"case {name!r}: {word!r} is not understood; allowed: {_syntax(kind)}")
    return make(*cell, mode, *required, **optional)


SYNTAX: dict[str, tuple[Callable[..., Case], bool, str, tuple[str, ...]]] = {
    "recurrent": (cast(Callable[..., Case], Recurrent), True, "TBIH", ("L", "bidirectional")),
    "ensemble": (cast(Callable[..., Case], Ensemble), True, "ETBIH", ()),
    "conv": (cast(Callable[..., Case], Convolution), False, "BCOSK", ("depthwise", "nhwc")),
}


def _syntax(kind: str) -> str:
    """`conv-MODE-B1-C1-O1-S1-K1[-depthwise][-nhwc]`."""
    _, cells, sizes, options = SYNTAX[kind]
    optional = "".join(f"[-{'L2' if option == 'L' else option}]" for option in options)
    return "-".join([kind, *(["CELL"] if cells else []), "MODE", *(f"{letter}1" for letter in sizes)]) + optional


def _word(name: str, words: list[str], allowed: Sequence[str]) -> str:
    word = words.pop(0) if words else ""
    if word not in allowed:
        raise ValueError(f"case {name!r}: {word!r} stands where one of {', '.join(allowed)} belongs")
    return word


def _size(name: str, words: list[str], letter: str) -> int:
    word = words.pop(0) if words else ""
    if word[:1] != letter or not word[1:].isdecimal() or int(word[1:]) < 1:
        kind = name.split("-")[0]
        raise ValueError(f"case {name!r}: {word!r} is no size {letter} above 0; it reads {_syntax(kind)}")
    return int(word[1:])
