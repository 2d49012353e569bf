"""A GPU to rehearse on: its tensors lie in the CPU's memory, its events read the clock, its graphs repeat every op."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import clocks


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """What `bench` asks of "cuda" is served, in this thread."""
    own = {
        "Event": Event,
        "Stream": mock.Mock,
        "stream": nullcontext,
        "current_stream": mock.Mock,
        "synchronize": mock.Mock(),
        "CUDAGraph": Graph,
        "graph": lambda graph: _Recording(graph.ops),
    }
    with mock.patch.multiple(torch.cuda, **own), mock.patch.object(clocks, "FLUSHED_BYTES", 1), _OnCpu():
        yield


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.seconds - self.seconds)


class Graph:
    def __init__(self) -> None:
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        for op, arguments, options, results in self.ops:
            for place, value in zip(tree_leaves(results), tree_leaves(op(*arguments, **options)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class _Recording(TorchDispatchMode):
    def __init__(self, ops: list[Any]) -> None:
        super().__init__()
        self.ops = ops

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = op(*args, **(kwargs or {}))
        self.ops.append((op, args, kwargs or {}, results))
        return results


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*map(_moved, args), **{name: _moved(value) for name, value in (kwargs or {}).items()})


def _moved(value: Any) -> Any:
    is_cuda = value == "cuda" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cuda"
    return torch.device("cpu") if is_cuda else value
