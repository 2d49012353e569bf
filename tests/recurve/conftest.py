"""Fixtures of the kernel tests: random numbers that each test owns, and hypothesis without files."""

import zlib

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "kernels", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kernels")


@pytest.fixture(autouse=True)
def seed(request):
    """From the test's own name, so that no test changes the random numbers of another."""
    number = zlib.crc32(request.node.name.encode())
    torch.manual_seed(number)
    return number


@pytest.fixture
def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def threads():
    """Sets the number of intra-op threads; the one before comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
