"""Fixtures of the kernel tests: random numbers that each test owns, and hypothesis without files."""

import zlib

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "kernels", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kernels")


@pytest.fixture
def generator(request):
    """Seeded by the test's own name, so that no test changes the inputs of another."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def threads():
    """Sets the number of intra-op threads; the one before comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
