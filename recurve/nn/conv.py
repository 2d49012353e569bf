"""ConvBlock: `torch.nn.Conv2d` with activation and pooling fused behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recurve import ops
from recurve.ops.conv import ACTIVATIONS, POOLS, Activation, Pool


class ConvBlock(torch.nn.Conv2d):
    """Convolution, bias, activation, pooling; parameters `weight` and `bias` as in `torch.nn.Conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype:
            as in `torch.nn.Conv2d`; padding is a number, a pair, "valid" or (with stride 1) "same".
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
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device, dtype=dtype
        )
        self.activation = activation
        self.pool = pool
        self.pool_size = pool_size

    def forward(self, input: Tensor) -> Tensor:
        x = input if input.dim() == 4 else input.unsqueeze(0)
        x, padding = self._pad(x)
        y = ops.conv_block(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            pool=self.pool,
            pool_size=self.pool_size,
        )
        return y if input.dim() == 4 else y.squeeze(0)

    def _pad(self, x: Tensor) -> tuple[Tensor, Sequence[int]]:
        """The input and the symmetric padding left to the kernel; what is not symmetric is padded here."""
        if not isinstance(self.padding, str):
            return x, self.padding
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if left == right and top == bottom:
            return x, (top, left)
        return torch.nn.functional.pad(x, [left, right, top, bottom]), (0, 0)

    def extra_repr(self) -> str:
        pooling = self.pool if self.pool == "none" else f"{self.pool}, pool_size={self.pool_size}"
        return f"{super().extra_repr()}, activation={self.activation}, pool={pooling}"
