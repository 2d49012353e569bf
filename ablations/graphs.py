"""A training step as a CUDA graph, where replaying it is faster than launching its kernels one by one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[..., torch.Tensor]
WARM_UP = 3  # calls before the one that is timed


class Recorder(Protocol):
    """How work is recorded; on a GPU, `CudaRecorder`."""

    def warm_up(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Do the work as recording will find it."""

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """Where the result will be, and what does the work, not done yet. Raises `RuntimeError` if it cannot."""

    def finish(self) -> None:
        """Wait until all work is done."""


class CudaRecorder:
    """Records on the current GPU."""

    def warm_up(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = work()
        torch.cuda.current_stream().wait_stream(side)
        return result

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()
        return result, graph.replay

    def finish(self) -> None:
        torch.cuda.synchronize()


class Replayed:
    """Calls `work`, which changes tensors in place and returns a new one, and replays it once that is recorded.

    All calls are real ones: some to warm up, one that is timed, one that records and replays, one more that is timed;
    from then on the faster way serves. `work` must read no value of a tensor, get inputs of one shape, and keep what it
    changes in the same tensors. Work that cannot be recorded goes on as it is, with a warning that says why.
    """

    def __init__(self, work: Work, recorder: Recorder | None = None) -> None:
        self._work = work
        self._recorder: Recorder = recorder or CudaRecorder()
        self._calls = 0
        self._seconds: dict[str, float] = {}
        self._replay: Callable[[], None] | None = None
        self.settled: str | None = None  # "launched" or "replayed", once that is known

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        if self.settled == "launched":
            return self._work(*inputs)
        if self._calls <= WARM_UP:
            return self._recorder.warm_up(lambda: self._work(*inputs))
        if self._calls == WARM_UP + 1:
            return self._timed("launched", lambda: self._work(*inputs))
        if self._replay is None and not self._recorded(inputs):
            return self._work(*inputs)
        if self._calls == WARM_UP + 3:
            result = self._timed("replayed", lambda: self._replayed(inputs))
            self.settled = min(self._seconds, key=lambda way: self._seconds[way])
            if self.settled == "launched":
                self._forget()
            return result
        return self._replayed(inputs)

    def _recorded(self, inputs: tuple[torch.Tensor, ...]) -> bool:
        self._inputs = [tensor.clone() for tensor in inputs]
        try:
            self._result, self._replay = self._recorder.record(lambda: self._work(*self._inputs))
        except RuntimeError as error:
            warnings.warn(f"training steps are not recorded as a CUDA graph: {error}", stacklevel=4)
            self.settled = "launched"
            return False
        return True

    def _replayed(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        assert self._replay is not None
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        self._replay()
        return self._result.clone()

    def _timed(self, way: str, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        self._recorder.finish()
        start = time.perf_counter()
        result = run()
        self._recorder.finish()
        self._seconds[way] = time.perf_counter() - start
        return result

    def _forget(self) -> None:
        """Give back the memory that the graph holds."""
        self._replay = None
        self._inputs = []
        del self._result
