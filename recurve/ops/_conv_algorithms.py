"""Ways to compute a convolution, in torch's own ops: differentiable to any order, for comparison and study."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recurve._extension import HALF


def im2col(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """Patches side by side as a matrix, times the weights (Chellapilla et al. 2006)."""
    outputs, _, *kernel = weight.shape
    sides = _sides(x, weight, stride, dilation)
    patches = F.unfold(x, tuple(kernel), tuple(dilation), 0, tuple(stride))
    by_group = patches.reshape(x.shape[0], groups, patches.shape[1] // groups, patches.shape[2])
    y = weight.reshape(groups, outputs // groups, -1) @ by_group
    return y.reshape(x.shape[0], outputs, *sides)


def fft(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """A product of spectra (Mathieu et al. 2014): work that does not grow with the kernel."""
    if x.shape[0] == 0:
        return im2col(x, weight, stride, dilation, groups)  # MKL has no transform of nothing
    outputs, depth, *kernel = weight.shape
    sides = _sides(x, weight, stride, dilation)
    spread = weight.new_zeros(outputs, depth, *(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)))
    spread[..., :: dilation[0], :: dilation[1]] = weight
    size = list(x.shape[-2:])
    spectrum = torch.fft.rfft2(x).unflatten(1, (groups, depth))
    kernels = torch.fft.rfft2(spread, s=size).conj().unflatten(0, (groups, outputs // groups))
    y = torch.fft.irfft2(torch.einsum("bgchw,gochw->bgohw", spectrum, kernels), s=size).flatten(1, 2)
    return y[..., : sides[0] * stride[0] : stride[0], : sides[1] * stride[1] : stride[1]]


# Lavin and Gray 2016: output = a (g weight g' * b image b') a', for tiles of 2 and of 4 pixels and kernels of 3.
TRANSFORMS = {
    2: (
        [[1, 1, 1, 0], [0, 1, -1, -1]],
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    ),
    4: (
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
    ),
}


def winograd(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """Minimal filtering (Lavin and Gray 2016): F(4x4, 3x3), or F(2x2, 3x3) where the output has fewer than 4 pixels.

    A quarter of the multiplications, or 4/9; in float32 the error is some seven times that of the direct sum.
    """
    outputs, depth, *kernel = weight.shape
    if (*kernel, *stride, *dilation) != (3, 3, 1, 1, 1, 1):
        raise ValueError(
            f"algorithm 'winograd' serves kernels of 3 x 3 with stride 1 and dilation 1, got kernel {tuple(kernel)}, "
            f"stride {tuple(stride)}, dilation {tuple(dilation)}; use 'auto'"
        )
    height, width = _sides(x, weight, stride, dilation)
    tile = 4 if min(height, width) >= 4 else 2
    a, b, g = (weight.new_tensor(matrix) for matrix in TRANSFORMS[tile])
    x = F.pad(x, [0, -width % tile, 0, -height % tile])
    tiles = x.unfold(2, tile + 2, tile).unfold(3, tile + 2, tile)  # (B, C, rows, columns, tile + 2, tile + 2)
    rows, columns = tiles.shape[2:4]
    images = (b @ tiles @ b.T).unflatten(1, (groups, depth))
    kernels = (g @ weight @ g.T).unflatten(0, (groups, outputs // groups))
    products = torch.einsum("bgcrsij,gocij->bgorsij", images, kernels)
    y = (a @ products @ a.T).flatten(1, 2)  # (B, O, rows, columns, tile, tile)
    y = y.transpose(3, 4).reshape(x.shape[0], outputs, rows * tile, columns * tile)
    return y[..., :height, :width]


ALGORITHMS: dict[str, Callable[[Tensor, Tensor, Sequence[int], Sequence[int], int], Tensor]] = {
    "im2col": im2col,
    "winograd": winograd,
    "fft": fft,
}


def convolve(
    algorithm: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`F.conv2d` by the algorithm of that name, for x (B, C, H, W); 16-bit types are computed in float32."""
    if weight.shape[1] * groups != x.shape[1]:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(weight.shape)}, expected input to have "
            f"{weight.shape[1] * groups} channels, but got {x.shape[1]} channels instead"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise RuntimeError(f"Input type ({x.dtype}) and {name} type ({tensor.dtype}) should be the same")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(
            f"Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {weight.shape[0]} "
            f"elements, but got bias of size {list(bias.shape)} instead"
        )
    x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    inside = torch.float32 if x.dtype in HALF else x.dtype
    y = ALGORITHMS[algorithm](x.to(inside), weight.to(inside), stride, dilation, groups).to(x.dtype)
    return y if bias is None else y + bias[:, None, None]


def _sides(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Height and width of the output."""
    extents = [dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in range(2)]
    if any(x.shape[2 + i] < extents[i] for i in range(2)):
        raise RuntimeError(
            f"Calculated padded input size per channel: {tuple(x.shape[2:])}. Kernel size: {tuple(extents)}. "
            "Kernel size can't be greater than actual input size"
        )
    return [(x.shape[2 + i] - extents[i]) // stride[i] + 1 for i in range(2)]
