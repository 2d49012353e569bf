"""Where calls that torch can serve go to torch's own ops on CUDA: estimates, on the safe side, until they are measured.

What torch has no op for, ensembles, resets, lengths and the like, always runs fused. Which kernel then serves a
recurrent call is for `csrc/torch/cuda/designs.h` to say.
"""

from __future__ import annotations


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
