"""Where calls that torch can serve go to torch's own ops on CUDA: estimates, on the safe side, until they are measured.

What torch has no op for, ensembles, resets, lengths and the like, always runs fused. Which kernel then serves a
recurrent call is for `csrc/torch/cuda/designs.h` to say.

Products of float32 round to TF32 where torch allows it: the kernels' own as `torch.backends.cudnn` says of RNNs and
convolutions, those of torch around them (the input's, the gradients of weights, and those of steps one by one) as
`torch.backends.cuda.matmul` says.
"""

from __future__ import annotations

from torch import Tensor

MOST_PIXELS = 1 << 30  # of a model, counted in 32 bits


def refusal_convolution(x: Tensor, padding: tuple[int, ...]) -> str | None:
    """Why the convolution kernels do not serve an input so large, if so."""
    pixels = x.shape[-4] * (x.shape[-2] + 2 * padding[0]) * (x.shape[-1] + 2 * padding[1]) if x.dim() >= 4 else 0
    return None if pixels < MOST_PIXELS else f"{pixels} pixels of a model are more than the kernels count"


def native_wins_recurrent() -> bool:
    """cuDNN serves all that it can; where the kernels should win (GRU, bfloat16 and TF32 above H 192) is not measured.

    Measure with `make gpu`, which forces the kernels.
    """
    return True


def native_wins_convolution(inputs: int, kernel: tuple[int, ...], *, depthwise: bool, training: bool) -> bool:
    """cuDNN wins but in training with few input channels to a group, or depthwise with kernels of 5 and more.

    There its gradient of the weights is slow, and activation and pooling are passes of their own that cost more than
    the convolution.
    """
    if not training:
        return True
    return max(kernel) < 5 if depthwise else inputs > 4
