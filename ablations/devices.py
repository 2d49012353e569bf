"""Where ensembles train and predict, and how much memory there is: the only place that asks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from ablations.design import DesignError

if TYPE_CHECKING:
    import torch

MEMORY_SHARE = 0.8  # of the memory that is free, for all that train at once


class Memory(NamedTuple):
    """Bytes of a device, by whomever they are used."""

    total: int
    used: int


def name() -> str:
    """ "cpu", or what ABLATE_DEVICE names. Raises `DesignError` for an unknown device."""
    chosen = os.environ.get("ABLATE_DEVICE", "cpu")
    if chosen not in ("cpu", "cuda"):
        raise DesignError(f"ABLATE_DEVICE={chosen} is unknown; allowed: cpu, cuda")
    return chosen


def device() -> torch.device:
    """The device of that name. Raises `DesignError` for an unknown one, or a GPU that torch cannot use."""
    import torch

    if name() == "cuda" and not torch.cuda.is_available():
        raise DesignError(
            f"ABLATE_DEVICE=cuda: torch {torch.__version__} can use no GPU here; leave it out for the CPU"
        )
    return torch.device(name())


def memory() -> Memory:
    """Of the GPU, or of the machine where the CPU trains."""
    if name() == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device())
        return Memory(total, total - free)
    import psutil

    of_machine = psutil.virtual_memory()
    return Memory(of_machine.total, of_machine.total - of_machine.available)


def gpu_memory() -> Memory | None:
    """Of the GPU; None where the CPU trains, whose memory nobody needs to see while it does."""
    return memory() if name() == "cuda" else None
