"""Checks that tests of several networks share."""

from collections.abc import Callable

import torch
from torch.func import functional_call, stack_module_state


def assert_stacked_equal_alone(
    make: Callable[[], torch.nn.Module], inputs: torch.Tensor, values: Callable[..., torch.Tensor] = torch.Tensor.clone
) -> None:
    """Three fresh models under `torch.vmap` give the `values` of outputs, and gradients, that each gives alone."""
    models = [make() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    outputs = torch.vmap(lambda p, b: values(functional_call(models[0], (p, b), (inputs,))))(parameters, buffers)
    outputs.square().sum().backward()
    for member, model in enumerate(models):
        alone = values(model(inputs))
        alone.square().sum().backward()
        torch.testing.assert_close(outputs[member], alone, rtol=1e-4, atol=1e-5)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameters[name].grad[member], parameter.grad, rtol=1e-3, atol=1e-4)
