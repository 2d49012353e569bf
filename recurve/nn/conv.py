"""Conv2d, and ConvBlock with activation and pooling fused behind it, on the kernels; parameters as in torch.nn."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recurve import ops
from recurve.ops.conv import ACTIVATIONS, POOLS, Activation, Pool


class Conv2d(torch.nn.Conv2d):
    """Drop-in for `torch.nn.Conv2d`: same arguments, parameters, shapes and errors.

    Zero, reflecting, replicating and circular padding all work; padding other than with zeros is made before the call.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input, "none", "none", 1)


def _convolve(
    module: torch.nn.Conv2d, input: Tensor, activation: Activation, pool: Pool, pool_size: int | tuple[int, int]
) -> Tensor:
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: {list(input.shape)}"
        )
    x = input if input.dim() == 4 else input.unsqueeze(0)
    padding = module.padding
    left, right, top, bottom = module._reversed_padding_repeated_twice
    if module.padding_mode != "zeros":
        x = F.pad(x, [left, right, top, bottom], mode=module.padding_mode)
        padding = (0, 0)
    y = ops.conv_block(
        x,
        module.weight,
        module.bias,
        stride=module.stride,
        padding=padding,  # type: ignore[arg-type]
        dilation=module.dilation,
        groups=module.groups,
        activation=activation,
        pool=pool,
        pool_size=pool_size,
    )
    return y if input.dim() == 4 else y.squeeze(0)


class ConvBlock(torch.nn.Conv2d):
    """Convolution, bias, activation, pooling; parameters `weight` and `bias` as in `torch.nn.Conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as in `torch.nn.Conv2d`; padding is a number, a pair, "valid" or (with stride 1) "same".
        activation: none, relu, leaky_relu, silu, tanh or sigmoid.
        pool: none, max or average.
        pool_size: side or sides of the pooling window, which is also its stride.

    Shape: (B, C, H, W) or (C, H, W) to (B, O, H', W') or (O, H', W').

    Raises:
        ValueError: an unknown activation or pool, and all that `torch.nn.Conv2d` raises.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        activation: Activation = "relu",
        pool: Pool = "max",
        pool_size: int | tuple[int, int] = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
        if pool not in POOLS:
            raise ValueError(f"pool {pool!r} is unknown; allowed: {', '.join(POOLS)}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self.activation = activation
        self.pool = pool
        self.pool_size = pool_size

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input, self.activation, self.pool, self.pool_size)

    def extra_repr(self) -> str:
        pooling = self.pool if self.pool == "none" else f"{self.pool}, pool_size={self.pool_size}"
        return f"{super().extra_repr()}, activation={self.activation}, pool={pooling}"
