"""Where calls that torch can serve go to torch's own ops on CUDA, as measured on an H200: see bench/results.

What torch has no op for, ensembles, resets, lengths and the like, always runs fused. Which kernel then serves a
recurrent call is for `csrc/torch/cuda/designs.h` to say.

Products of float32 round to TF32 where torch allows it: the kernels' own as `torch.backends.cudnn` says of RNNs and
convolutions, those of torch around them (the input's, the gradients of weights, and those of steps one by one) as
`torch.backends.cuda.matmul` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_PIXELS = 1 << 30  # of a model, counted in 32 bits
MOST_PRODUCTS = 100_000_000  # of a step, as in designs.h: beyond, processors that share a model wait for products


def refusal_convolution(x: Tensor, padding: tuple[int, ...]) -> str | None:
    """Why the convolution kernels do not serve an input so large, if so."""
    pixels = x.shape[-4] * (x.shape[-2] + 2 * padding[0]) * (x.shape[-1] + 2 * padding[1]) if x.dim() >= 4 else 0
    return None if pixels < MOST_PIXELS else f"{pixels} pixels of a model are more than the kernels count"


def native_wins_recurrent(op: str, dtype: torch.dtype, batch: int, hidden: int) -> bool:
    """In float32 up to 192 units, which one processor holds for cuDNN; and beyond what processors hold together.

    There the kernels would go step by step, which wins where a CUDA graph is replayed and loses where Python queues the
    steps. What is not measured, a plain RNN, float16, float64 and float32 that must not round, is cuDNN's.
    """
    if op == "rnn" or batch * (4 if op == "lstm" else 3) * hidden**2 > MOST_PRODUCTS:
        return True
    if dtype == torch.float32:
        return not torch.backends.cudnn.allow_tf32 or not 192 < hidden <= 1024
    return dtype != torch.bfloat16


def native_wins_convolution(
    inputs: int, kernel: tuple[int, ...], *, depthwise: bool, training: bool, channels_last: bool
) -> bool:
    """cuDNN wins but in training with few input channels to a group, or depthwise with kernels of 5 and more.

    There its gradient of the weights is slow, and activation and pooling are passes of their own that cost more than
    the convolution. Depthwise with channels last it has kernels for just that.
    """
    if not training or (depthwise and channels_last):
        return True
    return max(kernel) < 5 if depthwise else inputs > 4
