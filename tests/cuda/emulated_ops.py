"""A pytest plugin: the CPU's compiled ops become the CUDA ones, whose kernels run on the host emulation.

Loaded with `-p emulated_ops`. EMULATED names the library that tests/cuda/emulated.cpp became; EMULATED_MACHINES lists
machines that the tests take in turn, each as processors, bytes of shared memory, order of threads (0 ascending, 1
descending); with EMULATED_SHARE only every nth test runs.
"""

import ctypes
import os
import zlib

import pytest
import torch

from recurve.ops import conv, recurrent

torch.ops.load_library(os.environ["EMULATED"])
MACHINES = [[int(number) for number in machine.split(",")] for machine in os.environ["EMULATED_MACHINES"].split()]
configure = ctypes.CDLL(os.environ["EMULATED"]).configure
torch.backends.cudnn.allow_tf32 = False  # tensor_cores.py turns it on by itself
recurrent.widened = conv.widened = lambda device: ()
conv._winograd_serves = lambda *geometry: False
# What a kernel leaves unwritten, or reads too early, is not a number.
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every nth test, as EMULATED_SHARE says."""
    share = int(os.environ.get("EMULATED_SHARE", "1"))
    config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % share])
    items[:] = items[::share]


def pytest_runtest_setup(item: pytest.Item) -> None:
    processors, shared_bytes, descending = MACHINES[zlib.crc32(item.nodeid.encode()) % len(MACHINES)]
    configure(processors, shared_bytes, bool(descending))
