"""Fixtures of the kernel tests: random numbers that each test owns, and hypothesis without files."""

import zlib

import pytest
import torch
from hypothesis import HealthCheck, settings

from recurve import _extension

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


MISSING = ("the extension is missing", "'_OpNamespace' 'recurve' object has no attribute")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that asks for a kernel is skipped, with the reason, where the extension could not be built."""
    try:
        return (yield)
    except (RuntimeError, AttributeError) as error:
        if not _extension.has("lstm") and any(text in str(error) for text in MISSING):
            pytest.skip("needs the compiled extension")
        raise
