"""What tracing, vmap and double backward need to know of the compiled convolution block."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from recurve import _extension
from recurve.ops import conv
from recurve.ops._aliases import alias


def register() -> None:
    """Attach the rules to the compiled ops."""
    for op in ("conv_block", "conv_block_winograd"):
        if not _extension.has(f"{op}_backward"):
            continue
        torch.library.register_fake(f"recurve::{op}", _fake)
        torch.library.register_fake(f"recurve::{op}_forward", _fake_forward)
        torch.library.register_vmap(f"recurve::{op}", partial(_vmap, op))
        torch.library.register_fake(f"recurve::{op}_backward", _fake_backward)
        torch.library.register_autograd(f"recurve::{op}_backward", _double_backward, setup_context=_keep_inputs)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    pool: str,
    pool_size: list[int],
) -> Tensor:
    window = pool_size if pool != "none" else [1, 1]
    sides = [
        ((x.shape[i - 2] + 2 * padding[i] - dilation[i] * (weight.shape[i - 2] - 1) - 1) // stride[i] + 1) // window[i]
        for i in range(2)
    ]
    return _laid_out_as(x, x.new_empty(*weight.shape[:-4], x.shape[-4], weight.shape[-4], *sides))


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    y = _fake(x, weight, bias, *options)
    *_, activation, pool, pool_size = options
    keeps_places = pool == "max" and pool_size[0] * pool_size[1] <= 256 and activation != "silu"
    if not keeps_places:
        return y, x.new_empty(0, dtype=torch.uint8)
    places = torch.empty_like(y, dtype=torch.uint8)
    return y, places if weight.dim() == 5 else places.unsqueeze(0)


def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    needed = (options[-2], options[-1], bias is not None)
    dx, dweight, dbias = (
        t.new_empty(t.shape) if t is not None and need else x.new_empty(0)
        for t, need in zip((x, weight, bias), needed, strict=True)
    )
    return _laid_out_as(x, dx), dweight, dbias


def _laid_out_as(x: Tensor, images: Tensor) -> Tensor:
    """On the CPU, images of one model keep their channels last."""
    last = x.device.type == "cpu" and images.dim() == x.dim() == 4 and not x.is_contiguous()
    if not last or not x.is_contiguous(memory_format=torch.channels_last):
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[6:13]  # after y and places, which follow from the others
    ctx.arguments = len(inputs)


def _double_backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradient of the backward pass, through the reference: slow, and right to any order."""
    create_graph = torch.is_grad_enabled()
    names = ("stride", "padding", "dilation", "groups", "activation", "pool", "pool_size")
    options = dict(zip(names, ctx.options, strict=True))
    with torch.enable_grad():
        leaves = [None if t is None else alias(t) for t in ctx.saved_tensors]
        dy, x, weight, bias = leaves
        inputs = [t for t in (x, weight, bias) if t is not None]
        y = conv.conv_block_reference(x, weight, bias, **options)  # type: ignore[arg-type]
        inner = torch.autograd.grad(y, inputs, dy, create_graph=True)
        given = [o for t, o in zip((x, weight, bias), outer, strict=True) if t is not None]
        pairs = [(i, o) for i, o in zip(inner, given, strict=True) if o is not None and o.shape == i.shape]
        targets = [t for t in leaves if t is not None]
        second = iter(
            torch.autograd.grad(
                [i for i, _ in pairs], targets, [o for _, o in pairs], create_graph=create_graph, allow_unused=True
            )
        )
    result = [None if t is None else next(second) for t in leaves]
    return (*result, *[None] * (ctx.arguments - len(result)))


def _vmap(
    name: str, info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> Any:
    """vmap becomes the ensemble axis; over the data alone, with shared weights, it becomes a larger batch."""
    models = info.batch_size
    if weight.dim() - (in_dims[1] is not None) == 5:
        raise NotImplementedError("vmap over a call that has an ensemble axis already; use one or the other")
    tensors = (x, weight, bias)
    front = [t if t is None or d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims, strict=False)]
    op = getattr(torch.ops.recurve, name)
    if in_dims[1] is None and in_dims[2] is None:
        y = op(front[0].flatten(0, 1), weight, bias, *options)  # type: ignore[union-attr]
        return y.unflatten(0, (models, -1)), 0
    whole = [
        t if t is None or d is not None else t.expand(models, *t.shape)
        for t, d in zip(front[1:], in_dims[1:], strict=False)
    ]
    return op(front[0], *whole, *options), 0
