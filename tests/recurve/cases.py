"""Random calls of the ops, and their outputs and gradients as one flat dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor

import recurve
from recurve import _extension, ops

needs_kernels = pytest.mark.skipif(not _extension.has("lstm"), reason="needs the compiled extension")

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
STATES = {"lstm": ("h0", "c0"), "gru": ("h0",), "rnn": ("h0",)}
EPSILON = torch.finfo(torch.float32).eps


class Case:
    """A call of an op, told by its sizes and options; as text, by those that differ from the defaults."""

    def __str__(self) -> str:
        words = []
        for part in fields(self):  # type: ignore[arg-type]
            value = getattr(self, part.name)
            if value is True:
                words.append(part.name)
            elif value != part.default and value != {}:
                words.append(f"{part.name}={value}".replace(" ", ""))
        return "-".join(words) or "plain"


@dataclass(frozen=True)
class Sequence(Case):
    """A call of lstm, gru or rnn; `models` is the ensemble axis, `shared` input lacks it."""

    op: str
    steps: int = 5
    batch: int = 3
    inputs: int = 4
    hidden: int = 7
    models: int | None = None
    shared: bool = False
    no_bias: bool = False
    lengths: bool = False
    resets: bool = False
    reverse: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self, generator: torch.Generator) -> dict[str, Tensor]:
        gates = GATES[self.op] * self.hidden
        ensemble = () if self.models is None else (self.models,)
        data = () if self.shared else ensemble
        shapes = {"x": (*data, self.steps, self.batch, self.inputs)}
        shapes |= dict.fromkeys(STATES[self.op], (*data, self.batch, self.hidden))
        shapes |= {"w_ih": (*ensemble, gates, self.inputs), "w_hh": (*ensemble, gates, self.hidden)}
        if not self.no_bias:
            shapes |= dict.fromkeys(("b_ih", "b_hh"), (*ensemble, gates))
        # Small enough that no draw is chaotic.
        scales = {"w_ih": 0.5 * self.inputs**-0.5, "w_hh": 0.5 * self.hidden**-0.5}
        return {name: scales.get(name, 1) * normal(shape, generator) for name, shape in shapes.items()}

    def arguments(self, generator: torch.Generator) -> dict[str, Any]:
        arguments = dict(self.options, reverse=self.reverse)
        if self.lengths:
            lengths = torch.randint(0, self.steps + 1, (self.batch,), generator=generator, device="cpu")
            arguments["lengths"] = lengths.to(torch.get_default_device())
        if self.resets:
            resets = torch.rand(self.steps, self.batch, generator=generator, device="cpu") < 0.3
            arguments["resets"] = resets.to(torch.get_default_device())
        return arguments


@dataclass(frozen=True)
class Block(Case):
    """A call of conv_block; `models` is the ensemble axis, `shared` input lacks it."""

    batch: int = 3
    channels: int = 2
    outputs: int = 5
    size: tuple[int, int] = (9, 8)
    kernel: tuple[int, int] = (3, 3)
    models: int | None = None
    shared: bool = False
    no_bias: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    op = "conv_block"

    def tensors(self, generator: torch.Generator) -> dict[str, Tensor]:
        E = () if self.models is None else (self.models,)
        data = () if self.shared else E
        depth = self.channels // self.options.get("groups", 1)
        weight = (*E, self.outputs, depth, *self.kernel)
        tensors = {
            "x": normal((*data, self.batch, self.channels, *self.size), generator),
            "weight": (depth * self.kernel[0] * self.kernel[1]) ** -0.5 * normal(weight, generator),
        }
        return tensors if self.no_bias else tensors | {"bias": normal((*E, self.outputs), generator)}

    def arguments(self, generator: torch.Generator) -> dict[str, Any]:
        return dict(self.options)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(torch.get_default_device())


def strided(tensor: Tensor) -> Tensor:
    """The same values, with gaps between them and their axes stored in reverse order."""
    axes = list(range(tensor.dim()))[::-1]
    gap = torch.nan if tensor.is_floating_point() else 1
    stored = torch.full([2 * n + 1 for n in tensor.permute(axes).shape], gap, dtype=tensor.dtype)
    view = stored[tuple(slice(1, None, 2) for _ in axes)]
    return view.copy_(tensor.permute(axes)).permute(axes)


def reference(case: Case) -> Callable[..., Any]:
    return getattr(ops, f"{case.op}_reference")


def results(
    function: Callable[..., Any],
    tensors: dict[str, Tensor],
    arguments: dict[str, Any],
    wanted: Iterable[str] | None = None,
    used: Iterable[int] | None = None,
) -> dict[str, Tensor]:
    """Outputs, and the gradients of `wanted` tensors (all by default) under integer weights of the `used` outputs."""
    wanted = set(tensors if wanted is None else wanted)
    leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in tensors.items()}
    outputs = function(**leaves, **arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    if not wanted:
        assert not any(o.requires_grad for o in outputs)
        return found
    chosen = [outputs[i] for i in (range(len(outputs)) if used is None else used)]
    weights = [(1 + 4 * (2.3 * torch.arange(o.numel())).sin()).round().reshape(o.shape).to(o) for o in chosen]
    grads = torch.autograd.grad(
        chosen, [leaves[n] for n in sorted(wanted)], weights, allow_unused=True, materialize_grads=True
    )
    return found | {f"gradient of {n}": g for n, g in zip(sorted(wanted), grads, strict=True)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Largest error at most `tolerance`; in float32, that times the largest value where this is above 1."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        if value.numel():
            error = (found[name] - value).abs().max().item()
            scale = max(1.0, value.abs().max().item()) if value.dtype == torch.float32 else 1.0
            assert error <= tolerance * scale, f"{name}: largest error {error:.3g}"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def assert_as_accurate(
    function: Callable[..., Any],
    case: Case,
    generator: torch.Generator,
    draws: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """In `dtype`, over some draws together, relative L2 error at most twice the native path's on the same inputs.

    One unit of rounding is the floor. Several draws, because the error of a few numbers is luck.
    """
    runs: list[tuple[dict[str, Tensor], ...]] = []
    for _ in range(draws):
        tensors, arguments = case.tensors(generator), case.arguments(generator)
        tensors = {name: t.to(dtype) for name, t in tensors.items()}
        exact = results(reference(case), {name: t.double() for name, t in tensors.items()}, arguments)
        with recurve.backend("native"):
            theirs = results(function, tensors, arguments)
        with recurve.backend("fused"):
            runs.append((results(function, tensors, arguments), theirs, exact))
    for name in runs[0][2]:
        ours, native, value = (torch.stack([run[i][name].double() for run in runs]) for i in range(3))
        floor = torch.finfo(dtype).eps * value.norm()
        error, allowed = (ours - value).norm(), 2 * (native - value).norm() + floor
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
