"""Who else computes the same: torch.compile, ONNX Runtime, JAX; and a yardstick, the products alone.

Registering another takes one call of `register`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module

from torch import nn

from bench.cases import Case
from bench.protocol import NATIVE, OURS, TWIN, Competitor, Problem

RESERVED = (OURS, TWIN, NATIVE, "all")
Build = Callable[[Case, Sequence[nn.Module]], Competitor]


class NotServed(ValueError):
    """A peer does not compute this case: why."""


@dataclass(frozen=True)
class Peer:
    """`make` is `module:function`, imported late: a function of a case and torch.nn's modules, whose weights are to be
    used, that returns a Competitor or raises NotServed; `needs` are the modules that must be installed."""

    name: str
    make: str
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str | None:
        """Why it cannot be had here; None if it can."""
        absent = [module for module in self.needs if not _is_installed(module)]
        return f"not installed: {', '.join(absent)}; `pip install 'recurve[peers]'`" if absent else None

    def competitor(self, case: Case, models: Sequence[nn.Module]) -> Competitor:
        module, _, function = self.make.partition(":")
        build: Build = getattr(import_module(module), function)
        return build(case, models)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would lie in
        return False


PEERS: dict[str, Peer] = {}


def register(name: str, make: str, *needs: str) -> None:
    """Make a peer known under a name that `--benchmark-peers` takes.

    Raises:
        ValueError: a name that competitors or the option have a use for, or one with a comma, which parts names.
    """
    if name in RESERVED or "," in name:
        raise ValueError(f"no peer can be called {name!r}: {', '.join(RESERVED)} are taken, and commas part names")
    PEERS[name] = Peer(name, make, needs)


register("products", "bench.peer_products:competitor")
register("torch.compile", "bench.peer_compile:competitor")
register("onnxruntime", "bench.peer_onnx:competitor", "onnx", "onnxruntime")
register("jax", "bench.peer_jax:competitor", "jax")


def joined(case: Case, problem: Problem, names: Sequence[str]) -> tuple[Problem, dict[str, str]]:
    """The problem with these peers as competitors, and why others of them are left out."""
    competitors, left_out = dict(problem.competitors), {}
    for name in names:
        reason = PEERS[name].missing
        if reason is None:
            try:
                competitors[name] = PEERS[name].competitor(case, problem.models)
            except NotServed as error:
                reason = str(error)
        if reason is not None:
            left_out[name] = reason
    return replace(problem, competitors=competitors), left_out
