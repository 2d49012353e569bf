"""The convolution block: convolution, bias, activation and pooling in one pass, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recurve._backend import choose

Activation = Literal["none", "relu", "leaky_relu", "silu", "tanh", "sigmoid"]
Pool = Literal["none", "max", "average"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
POOLS = ("none", "max", "average")


def conv_block(
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
    """Cross-correlation, bias, activation, then non-overlapping pooling, as `conv2d`, `relu`, `max_pool2d` in a row.

    Args:
        x: input (B, C, H, W) or (E, B, C, H, W) for an ensemble of E models.
        weight: (O, C / groups, kH, kW) or (E, ...); with E on the weights only, all models see the same input.
        bias: (O,), (E, O) or None.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`, numbers only.
        activation: none, relu, leaky_relu (slope 0.01), silu, tanh or sigmoid.
        pool: none, max or average, over windows of `pool_size` that do not overlap; what is left over is dropped.

    Returns:
        (B, O, H', W'), with a leading E if there is one.

    Raises:
        ValueError: an unknown activation or pool.
        RuntimeError: shapes or dtypes that do not fit together, or a forced backend that cannot serve.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is unknown; allowed: {', '.join(POOLS)}")
    geometry = [_pair(stride), _pair(padding), _pair(dilation)]
    window = _pair(pool_size) if pool != "none" else (1, 1)
    refusal = None if tuple(geometry[0]) == (1, 1) else f"there is no kernel for stride {stride}"
    if torch.is_autocast_enabled(x.device.type):
        refusal = "autocast is on"
    slower = _native_wins(x, weight, activation, pool)
    if choose("conv_block", x, refusal=refusal, slower=slower) == "fused":
        return torch.ops.recurve.conv_block(x, weight, bias, *geometry, groups, activation, pool, window)
    return conv_block_reference(
        x,
        weight,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=activation,
        pool=pool,
        pool_size=window,
    )


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
    if weight.dim() == 5:
        models = weight.shape[0]
        x = x.expand(models, *x.shape[-4:])
        x = x.transpose(0, 1).flatten(1, 2)  # (B, E C, H, W)
        flat_bias = None if bias is None else bias.flatten()
        y = F.conv2d(x, weight.flatten(0, 1), flat_bias, stride, padding, dilation, groups * models)
        y = _pool(ACTIVATIONS[activation](y), pool, pool_size)
        return y.unflatten(1, (models, -1)).transpose(0, 1)
    return _pool(ACTIVATIONS[activation](F.conv2d(x, weight, bias, stride, padding, dilation, groups)), pool, pool_size)


def _native_wins(x: Tensor, weight: Tensor, activation: str, pool: str) -> bool:
    """Whether torch's own ops were measured to be faster: training many channels where all pixels have a gradient."""
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not training or weight.dim() != 4 or x.dim() != 4 or x.shape[0] == 1:
        return False
    return weight.shape[1] >= 16 and (pool != "max" or activation == "silu")


def _pool(x: Tensor, pool: Pool, size: int | Sequence[int]) -> Tensor:
    if pool == "none":
        return x
    return F.max_pool2d(x, _pair(size)) if pool == "max" else F.avg_pool2d(x, _pair(size))


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
