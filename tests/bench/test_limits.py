"""The machine's limits: measured rightly, and nothing is faster."""

from __future__ import annotations

import time

import pytest
import torch

from bench.cases import parse
from bench.limits import ImpossibleSpeed, Limits
from recurve import _extension

CASE = parse("recurrent-GRU-infer-T10-B4-I8-H16")
needs_extension = pytest.mark.skipif(_extension.module() is None, reason="the extension is not built")


def test_what_binds_is_what_takes_longer() -> None:
    assert Limits(flops=1e9, bandwidth=1e12).bound(CASE) == "arithmetic"
    assert Limits(flops=1e12, bandwidth=1e9).bound(CASE) == "memory"


def test_the_share_is_of_the_binding_limit() -> None:
    assert Limits(flops=CASE.flops, bandwidth=1e12).share(CASE, seconds=2.0) == pytest.approx(0.5)
    assert Limits(flops=1e12, bandwidth=CASE.bytes).share(CASE, seconds=4.0) == pytest.approx(0.25)


def test_a_time_below_what_the_machine_can_do_is_refused() -> None:
    limits = Limits(flops=CASE.least_flops, bandwidth=1e12)
    limits.share(CASE, seconds=1 / 1.04)
    with pytest.raises(ImpossibleSpeed, match=r"recurrent-GRU-infer-T10-B4-I8-H16: .* at most 105% is believed"):
        limits.share(CASE, seconds=1 / 1.06)


def test_the_best_probe_counts() -> None:
    assert Limits.highest([Limits(1, 4), Limits(2, 3)]) == Limits(2, 4)
    assert Limits.highest([]) is None


@needs_extension
def test_no_matrix_product_beats_the_arithmetic_peak() -> None:
    a = torch.randn(512, 512)
    torch.mm(a, a)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - start)
    module = _extension.module()
    assert module is not None
    peak = max(module.peak_flops(0.01) for _ in range(3))
    assert 2 * 512**3 / min(seconds) < 1.2 * peak


@needs_extension
def test_copying_no_more_than_a_cache_holds_is_no_faster_than_the_bandwidth_there() -> None:
    source, target = torch.ones(1 << 16), torch.ones(1 << 16)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    module = _extension.module()
    assert module is not None
    assert 2 * source.nbytes / min(seconds) < 1.2 * module.peak_bandwidth(2 * source.nbytes, 0.02)


@needs_extension
def test_too_little_memory_for_a_probe_is_an_error() -> None:
    module = _extension.module()
    assert module is not None
    with pytest.raises(ValueError, match="peak_bandwidth: 100 bytes are too few"):
        module.peak_bandwidth(100, 0.01)
