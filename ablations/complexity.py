"""What a model costs whatever the machine: parameters, arithmetic and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import recurve
from ablations.design import Task

COPIES = 4  # of each parameter that training with Adam holds: weight, gradient, two moments


@dataclass(frozen=True)
class Complexity:
    """Of one model. `flops`: multiplications and additions of the matrix products and convolutions of a forward pass of
    one example. `peak_memory`: bytes that a training step of one batch holds when its forward pass ends, which are
    weights, gradients, optimiser state and what is saved for the backward pass."""

    parameters: int
    flops: int
    peak_memory: int


def complexity(task: Task, batch_size: int) -> Complexity:
    model = task.model()
    return Complexity(count_parameters(model), _flops(task), peak_memory(task, batch_size))


def count_parameters(model: torch.nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def peak_memory(task: Task, batch_size: int) -> int:
    """See `Complexity`."""
    model = task.model()
    kept = COPIES * sum(map(_bytes, model.parameters())) + sum(map(_bytes, model.buffers()))
    return kept + _saved_bytes(model, task, batch_size)


def _flops(task: Task) -> int:
    model, example = task.model(), task.train_inputs[:1]
    # our kernels and oneDNN's recurrent layers, which do not serve float64, are ops that the counter cannot look into
    model.eval().double()
    with recurve.backend("native"), FlopCounterMode(display=False) as counter:
        model(example.double() if example.is_floating_point() else example)
    return counter.get_total_flops()


def _saved_bytes(model: torch.nn.Module, task: Task, batch_size: int) -> int:
    """Bytes that the graph of a batch's loss holds besides the parameters, each storage counted once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    inputs, targets = task.train_inputs[:batch_size].clone(), task.train_targets[:batch_size].clone()
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = task.loss(model(inputs), targets)
    held = sum(size for place, size in storages.items() if place not in own)
    del loss  # until here the graph kept what it saved, so that no storage was counted under another's place
    return held


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
