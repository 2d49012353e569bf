"""Optimizers over stacked parameters (E, ...) with a learning rate for each model, their schedules, and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

WARM_UP = 0.2  # of a "one-cycle" schedule's steps


class Optimizer:
    """Keeps `slots` tensors beside every parameter and moves it by `update`. A step consumes the gradients.

    `scales` (steps,) are what each step multiplies the learning rates by; steps after the last keep its scale. All that
    changes from step to step lies in tensors, so that a step can be recorded and replayed.
    """

    slots = 0

    def __init__(
        self, parameters: Sequence[torch.Tensor], learning_rates: torch.Tensor, scales: torch.Tensor | None = None
    ) -> None:
        self._kept = [
            (p, [torch.zeros_like(p) for _ in range(self.slots)], beside(learning_rates, p).to(p)) for p in parameters
        ]
        where = self._kept[0][0].device
        self._scales = (torch.ones(1, dtype=torch.float64) if scales is None else scales).to(where)
        self._steps = torch.zeros((), dtype=torch.int64, device=where)

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters."""
        scale = self._scales.take(self._steps.clamp(max=len(self._scales) - 1))
        self._steps.add_(1)
        self.begin()
        for parameter, kept, rate in self._kept:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                self.update(parameter, gradient, kept, rate * scale)

    def begin(self) -> None:
        """Compute what the updates of one step share."""

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, kept: list[torch.Tensor], rate: torch.Tensor
    ) -> None:
        raise NotImplementedError


class Adam(Optimizer):
    """`torch.optim.Adam` (Kingma & Ba 2015) with its defaults, in the order of its section 2 that corrects the rate."""

    slots = 2
    MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8

    def begin(self) -> None:
        mean_share, square_share = (1 - decay ** self._steps.double() for decay in (self.MEAN_DECAY, self.SQUARE_DECAY))
        root_share = square_share.sqrt()
        self._epsilon = self.EPSILON * root_share
        self._correction = root_share / mean_share

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, kept: list[torch.Tensor], rate: torch.Tensor
    ) -> None:
        mean, square = kept
        mean.lerp_(gradient, 1 - self.MEAN_DECAY)
        square.mul_(self.SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - self.SQUARE_DECAY)
        parameter.addcdiv_(mean * (rate * self._correction), square.sqrt().add_(self._epsilon), value=-1)


class AdamW(Adam):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019) with a weight decay of 0.05."""

    WEIGHT_DECAY = 0.05

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, kept: list[torch.Tensor], rate: torch.Tensor
    ) -> None:
        parameter.mul_(1 - rate * self.WEIGHT_DECAY)
        super().update(parameter, gradient, kept, rate)


class Sgd(Optimizer):
    """`torch.optim.SGD` with Nesterov's momentum of 0.9."""

    slots = 1
    MOMENTUM = 0.9

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, kept: list[torch.Tensor], rate: torch.Tensor
    ) -> None:
        (velocity,) = kept
        velocity.mul_(self.MOMENTUM).add_(gradient)
        parameter.sub_((gradient + self.MOMENTUM * velocity) * rate)


OPTIMIZERS: Mapping[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": Sgd}
OF_TORCH: Mapping[str, Callable[..., torch.optim.Optimizer]] = {  # the same for a model by itself
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=AdamW.WEIGHT_DECAY),
    "sgd": partial(torch.optim.SGD, momentum=Sgd.MOMENTUM, nesterov=True),
}


def optimizer(
    name: str, parameters: Sequence[torch.Tensor], learning_rates: torch.Tensor, scales: torch.Tensor | None = None
) -> Optimizer:
    """The optimizer called so, with learning rates (E,); `ValueError` lists those there are."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown; allowed are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](parameters, learning_rates, scales)


def _one_cycle(progress: float) -> float:
    rising = progress < WARM_UP
    return progress / WARM_UP if rising else _cosine((progress - WARM_UP) / (1 - WARM_UP))


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}


def schedule(name: str, steps: int) -> torch.Tensor:
    """What the learning rate is multiplied by at each of `steps`, (steps,).

    "cosine" falls from one to nearly zero as half a cosine (Loshchilov & Hutter 2017); "one-cycle" rises linearly in
    the first fifth of the steps and falls so afterwards (after Smith & Topin 2019). `ValueError` lists the schedules.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown; allowed are {', '.join(SCHEDULES)}")
    return torch.tensor([SCHEDULES[name]((step + 0.5) / steps) for step in range(steps)], dtype=torch.float64)


class Average:
    """Exponential moving averages of tensors by name (Polyak & Juditsky 1992), over about 1 / (1 - `decay`) steps.

    Early on, over about a tenth of the steps done. What holds no real numbers is taken as it last was.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"averaging must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self._source = tensors
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()} if decay else tensors
        where = next(iter(tensors.values())).device
        self._steps = torch.zeros((), dtype=torch.float64, device=where)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the tensors as they are now."""
        if not self.decay:
            return
        self._steps.add_(1)
        share = 1 - ((1 + self._steps) / (10 + self._steps)).clamp(max=self.decay)
        for name, tensor in self._source.items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor, share.to(tensor))
            else:
                self.values[name].copy_(tensor)


def beside(values: torch.Tensor, stacked: torch.Tensor) -> torch.Tensor:
    """Values (E,) shaped to be combined with a stack (E, ...)."""
    return values.reshape(-1, *[1] * (stacked.dim() - 1))
