"""The convolution block: convolution, bias, activation and pooling in one pass, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recurve._backend import Backend, choose
from recurve.ops import _conv_algorithms
from recurve.ops._cuda import native_wins_convolution

Activation = Literal["none", "relu", "leaky_relu", "silu", "tanh", "sigmoid"]
Pool = Literal["none", "max", "average"]
Algorithm = Literal["auto", "direct", "im2col", "winograd", "fft", "native"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
POOLS = ("none", "max", "average")
FORCED: dict[str, Backend] = {
    "auto": "auto",
    "direct": "fused",
    "native": "native",
}  # the others are made of torch's ops
ALGORITHMS = (*FORCED, *_conv_algorithms.ALGORITHMS)


def conv_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Literal["same", "valid"] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: Activation = "relu",
    pool: Pool = "max",
    pool_size: int | Sequence[int] = 2,
    algorithm: Algorithm = "auto",
) -> Tensor:
    """Cross-correlation, bias, activation, then non-overlapping pooling, as `conv2d`, `relu`, `max_pool2d` in a row.

    Args:
        x: input (B, C, H, W) or (E, B, C, H, W) for an ensemble of E models.
        weight: (O, C / groups, kH, kW) or (E, ...); with E on the weights only, all models see the same input.
        bias: (O,), (E, O) or None.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`.
        activation: none, relu, leaky_relu (slope 0.01), silu, tanh or sigmoid.
        pool: none, max or average, over windows of `pool_size` that do not overlap; what is left over is dropped.
        algorithm: all give the same answer, up to rounding. "auto" picks what was measured to be faster of "direct",
            the fused kernel, and "native", torch's ops. "im2col", "winograd" (kernels of 3 x 3 with stride and
            dilation 1; in float32 its error is some seven times larger) and "fft" are made of torch's ops, to compare.

    Returns:
        (B, O, H', W'), with a leading E if there is one.

    Raises:
        ValueError: an unknown activation, pool or algorithm, or an algorithm that does not serve the geometry.
        RuntimeError: shapes or dtypes that do not fit together, or a forced backend that cannot serve.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is unknown; allowed: {', '.join(POOLS)}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm {algorithm!r} is unknown; allowed: {', '.join(ALGORITHMS)}")
    if isinstance(padding, str):
        x, padding = _padded(x, weight, stride, padding, dilation)
    geometry = [_pair(stride), _pair(padding), _pair(dilation)]
    window = _pair(pool_size) if pool != "none" else (1, 1)
    served = x.is_cuda or tuple(geometry[0]) == (1, 1)
    refusal = None if served else f"there is no kernel for stride {stride}"
    if torch.is_autocast_enabled(x.device.type):
        refusal = "autocast is on"
    if algorithm in FORCED:
        slower = _native_wins(x, weight, groups, activation, pool)
        if choose("conv_block", x, refusal=refusal, slower=slower, forced=FORCED[algorithm]) == "fused":
            return torch.ops.recurve.conv_block(x, weight, bias, *geometry, groups, activation, pool, window)
        convolve = F.conv2d
    else:
        convolve = partial(_conv_algorithms.convolve, algorithm)
    return _chain(convolve, x, weight, bias, geometry, groups, activation, pool, window)


def conv_block_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: Activation = "relu",
    pool: Pool = "max",
    pool_size: int | Sequence[int] = 2,
) -> Tensor:
    """`conv_block` in torch's own ops, which is also its native path; an ensemble becomes groups of one convolution."""
    geometry = [_pair(stride), _pair(padding), _pair(dilation)]
    return _chain(F.conv2d, x, weight, bias, geometry, groups, activation, pool, pool_size)


def _chain(
    convolve: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Sequence[Sequence[int]],
    groups: int,
    activation: Activation,
    pool: Pool,
    window: int | Sequence[int],
) -> Tensor:
    """`convolve`, then activation and pooling of torch; an ensemble becomes groups of one convolution."""
    if weight.dim() == 5:
        models = weight.shape[0]
        x = x.expand(models, *x.shape[-4:])
        x = x.transpose(0, 1).flatten(1, 2)  # (B, E C, H, W)
        flat_bias = None if bias is None else bias.expand(models, weight.shape[1]).flatten()
        y = convolve(x, weight.flatten(0, 1), flat_bias, *geometry, groups * models)
        return _pool(ACTIVATIONS[activation](y), pool, window).unflatten(1, (models, -1)).transpose(0, 1)
    return _pool(ACTIVATIONS[activation](convolve(x, weight, bias, *geometry, groups)), pool, window)


def _padded(
    x: Tensor, weight: Tensor, stride: int | Sequence[int], padding: str, dilation: int | Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """For padding by name, the input and the symmetric padding left to the kernel; of odd sums, one side is padded."""
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise ValueError(f"padding {padding!r} is unknown; allowed: a number, a pair, 'same', 'valid'")
    if tuple(_pair(stride)) != (1, 1):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride {stride}")
    total = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[-2:], strict=True)]
    if any(t % 2 for t in total):
        x = F.pad(x, [0, total[1] % 2, 0, total[0] % 2])
    return x, (total[0] // 2, total[1] // 2)


def _native_wins(x: Tensor, weight: Tensor, groups: int, activation: str, pool: str) -> bool:
    """Whether torch's own ops were measured to be faster: training many channels where all pixels have a gradient."""
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if weight.dim() != 4 or x.dim() != 4:
        return False
    if x.is_cuda:
        inputs, depthwise = weight.shape[1], groups > 1 and groups == x.shape[1] == weight.shape[0]
        return native_wins_convolution(inputs, weight.shape[-2:], depthwise=depthwise, training=training)
    if not training or x.shape[0] == 1:
        return False
    return weight.shape[1] >= 16 and (pool != "max" or activation == "silu")


def _pool(x: Tensor, pool: Pool, size: int | Sequence[int]) -> Tensor:
    if pool == "none":
        return x
    return F.max_pool2d(x, _pair(size)) if pool == "max" else F.avg_pool2d(x, _pair(size))


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
