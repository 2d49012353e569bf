"""Which path a call takes: the fused kernel, torch's native op, or the differentiable reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.autograd import forward_ad

from recurve import _extension

Backend = Literal["auto", "fused", "native"]
Path = Literal["fused", "native", "reference"]

_backend: Backend = "auto"


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Force a path inside the block, for the whole process: `with recurve.backend("native"): ...`.

    "fused" raises RuntimeError where the kernels do not serve; "native" calls torch's own ops; "auto" picks.
    """
    global _backend
    if name not in ("auto", "fused", "native"):
        raise ValueError(f"backend {name!r} is unknown; allowed: 'auto', 'fused', 'native'")
    previous, _backend = _backend, name
    try:
        yield
    finally:
        _backend = previous


def choose(
    op: str, x: torch.Tensor, *, refusal: str | None = None, slower: bool = False, forced: Backend = "auto"
) -> Path:
    """The path that `op` takes for an input like `x`; `forced` forces it for this call as `backend` does for all.

    `refusal` says why the kernel does not serve this very call, if so; `slower` that it would lose to the native op,
    which then serves unless the kernel is forced or a vmap is to become its ensemble axis.
    Transforms that a kernel cannot pass through (`torch.func.grad`, `jvp`, forward-mode AD) take the reference; so
    does `torch.vmap`, and tracing by `torch.compile`, where there is no kernel.
    """
    if torch.compiler.is_compiling():
        batched, differentiated = False, False
    else:
        batched, differentiated = _transforms()
    obstacle = "a torch.func derivative is being taken" if differentiated else refusal
    obstacle = obstacle or _extension.obstacle(op, x.device, x.dtype)
    name = _backend if forced == "auto" else forced
    wanted = name == "fused" or (name == "auto" and (batched or not slower))
    if wanted and obstacle is None:
        return "fused"
    if name == "fused":
        raise RuntimeError(f"recurve.backend('fused'): {op} cannot run fused: {obstacle}; use 'auto' or 'native'")
    if differentiated or batched or torch.compiler.is_compiling():
        return "reference"
    return "native"


def _transforms() -> tuple[bool, bool]:
    """Whether a vmap is active, and whether any derivative transform is."""
    differentiated = forward_ad._current_level >= 0
    if torch._C._functorch.peek_interpreter_stack() is None:
        return False, differentiated
    kinds = {interpreter.key() for interpreter in torch._C._functorch.get_interpreter_stack() or ()}
    vmap = torch._C._functorch.TransformType.Vmap
    return vmap in kinds, differentiated or bool(kinds - {vmap})
