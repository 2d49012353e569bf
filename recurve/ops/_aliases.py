"""Tensors to differentiate by inside a backward pass."""

from torch import Tensor


def alias(t: Tensor) -> Tensor:
    """A stand-in for `t`: apart from the graph behind it, yet tied to it for still higher derivatives."""
    if not t.is_floating_point():
        return t
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
