"""Fused convolutional and recurrent networks for PyTorch, drop-in for `torch.nn`, with native fallback."""

from recurve import nn, ops
from recurve._backend import backend
from recurve._extension import status

__version__ = "0.1.0"

__all__ = ["__version__", "backend", "nn", "ops", "status"]
