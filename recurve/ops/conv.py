"""The convolution block: convolution, bias, activation and pooling in one pass, and its reference."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recurve import _extension
from recurve._backend import Backend, choose
from recurve.ops import _conv_algorithms
from recurve.ops._cuda import native_wins_convolution, refusal_convolution
from recurve.ops.recurrent import widened

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
FORCED: dict[str, Backend] = {"direct": "fused", "native": "native"}
KERNELS = ("auto", "direct", "native", "winograd")  # the others are made of torch's ops
ALGORITHMS = ("auto", *FORCED, *_conv_algorithms.ALGORITHMS)


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
        algorithm: all give the same answer, up to rounding. "auto" picks what was measured to be fastest of the fused
            kernels, "direct" and "winograd" (kernels of 3 x 3 with stride and dilation 1; in float32 its error is some
            seven times larger), and "native", torch's ops. "im2col" and "fft", and "winograd" where it has no kernel,
            are made of torch's ops, to compare.

    Returns:
        (B, O, H', W'), with a leading E if there is one. On the CPU, without E, channels that come last in the memory
        of x (`torch.channels_last`) do so in the result.

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
    geometry = (_pair(stride, "stride"), _pair(padding, "padding"), _pair(dilation, "dilation"))
    window = _pair(pool_size, "pool_size") if pool != "none" else (1, 1)
    options = (*geometry, groups, activation, pool, window)
    serves = _winograd_serves(x, weight, geometry, window)
    refusal = "no kernel of Winograd's algorithm for this geometry" if algorithm == "winograd" and not serves else None
    if x.is_cuda:
        refusal = refusal or refusal_convolution(x, geometry[1])
    convolve: Callable[..., Tensor] = F.conv2d
    if algorithm in _conv_algorithms.ALGORITHMS:
        convolve = partial(_conv_algorithms.convolve, algorithm)
    if algorithm in KERNELS:
        suits = serves and _winograd_suits(x, weight)
        winograd = algorithm == "winograd" or (algorithm == "auto" and suits and _winograd_wins(x, weight, pool))
        slower = algorithm == "auto" and _native_wins(x, weight, geometry[0], groups, activation, pool, suits)
        if choose("conv_block", x, refusal=refusal, slower=slower, forced=FORCED.get(algorithm, "auto")) == "fused":
            return _fused("conv_block_winograd" if winograd else "conv_block", x, weight, bias, options)
    return _chain(convolve, x, weight, bias, *options)


def _fused(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
    """Call a compiled op, in the type of its arithmetic; the result has the type that torch's own has."""
    call = getattr(torch.ops.recurve, op)
    device, inside, out = x.device.type, x.dtype, x.dtype
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        inside = out = torch.get_autocast_dtype(device)
    elif x.dtype not in widened(device) or any(t is not None and t.dtype != x.dtype for t in (weight, bias)):
        return call(x, weight, bias, *options)
    if inside in widened(device):
        inside = torch.float32
    return call(*(None if t is None else t.to(inside) for t in (x, weight, bias)), *options).to(out)


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
    geometry = (_pair(stride, "stride"), _pair(padding, "padding"), _pair(dilation, "dilation"))
    return _chain(F.conv2d, x, weight, bias, *geometry, groups, activation, pool, pool_size)


def _chain(
    convolve: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: Activation,
    pool: Pool,
    window: int | Sequence[int],
) -> Tensor:
    """`convolve`, then activation and pooling of torch; an ensemble becomes groups of one convolution."""
    geometry = (stride, padding, dilation)
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
    if _pair(stride, "stride") != (1, 1):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride {stride}")
    total = [d * (k - 1) for d, k in zip(_pair(dilation, "dilation"), weight.shape[-2:], strict=True)]
    if any(t % 2 for t in total):
        x = F.pad(x, [0, total[1] % 2, 0, total[0] % 2])
    return x, (total[0] // 2, total[1] // 2)


def _native_wins(
    x: Tensor, weight: Tensor, stride: Sequence[int], groups: int, activation: str, pool: str, suits_winograd: bool
) -> bool:
    """Whether torch's own ops were measured to be faster.

    On the CPU, in training, where all pixels have a gradient: with very many weights, and where Winograd's algorithm
    does not suit, with strides, kernels of 1 x 1 or large ones, and where the slopes need the sum over many channels a
    second time. Where channels come last torch is faster than elsewhere: it wins wherever the slopes need the sum
    again, and often without max pooling.
    """
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if weight.dim() != 4 or x.dim() != 4:
        return False
    depthwise = groups > 1 and groups == x.shape[1] == weight.shape[0]
    channels_last = x.stride(1) == 1 < x.shape[1]
    if x.is_cuda:
        return native_wins_convolution(
            weight.shape[1],
            weight.shape[-2:],
            depthwise=depthwise,
            training=training,
            channels_last=channels_last,
        )
    again = activation == "silu" or (pool == "average" and activation != "none")
    strided, depth, taps = tuple(stride) != (1, 1), weight.shape[1:].numel(), weight.shape[-2] * weight.shape[-1]
    if channels_last:
        if depthwise:
            return (pool == "none" and (strided or taps <= 9)) or (training and again and taps <= 9)
        if training:
            return again or (pool != "max" and not suits_winograd)
        return not suits_winograd and ((pool != "max" and taps >= 25) or (weight.shape[0] <= 16 and depth > 400))
    if not training or depthwise or (pool == "max" and activation != "silu"):
        return False
    if suits_winograd and not again:
        return weight.numel() > 100_000  # the gradient of so many transformed kernels does not stay in the cache
    return strided or depth > (300 if again else 600) or (taps == 1 and pool == "none")


def _winograd_serves(x: Tensor, weight: Tensor, geometry: Sequence[Sequence[int]], window: Sequence[int]) -> bool:
    """Whether there is a kernel of Winograd's algorithm: it works on tiles of 2 or 4 rows, in whole windows."""
    stride, _, dilation = geometry
    plain = (*weight.shape[-2:], *stride, *dilation) == (3, 3, 1, 1, 1, 1) and weight.shape[-3] > 1
    built = x.device.type == "cpu" and _extension.has("conv_block_winograd_backward")
    return built and plain and window[0] in (1, 2, 4)


def _winograd_suits(x: Tensor, weight: Tensor) -> bool:
    """Whether both sides have channels enough for Winograd's algorithm."""
    return x.dtype != torch.float64 and min(weight.shape[-3], weight.shape[-4]) >= 8


def _winograd_wins(x: Tensor, weight: Tensor, pool: str) -> bool:
    """Whether Winograd's algorithm, where it suits, was measured to be faster than the direct sum.

    With enough work, which is taken for granted where sizes are only traced, and the more channels where pooling leaves
    the algorithm the forward pass alone.
    """
    outputs, inputs = weight.shape[-4], weight.shape[-3]
    enough = torch.compiler.is_compiling() or x.numel() * outputs >= 100_000
    return enough and (pool == "none" or inputs >= 12 or outputs >= 32)


def _pool(x: Tensor, pool: Pool, size: int | Sequence[int]) -> Tensor:
    if pool == "none":
        return x
    size = _pair(size, "pool_size")
    return F.max_pool2d(x, size) if pool == "max" else F.avg_pool2d(x, size)


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Height and width of an option; like torch's, it is one whole number or two."""
    sides = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(sides) not in (1, 2):
        raise RuntimeError(f"expected {name} to be a single integer value or a list of 2 values, but got {value}")
    return operator.index(sides[0]), operator.index(sides[-1])
