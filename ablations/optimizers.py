"""Optimizers over stacked parameters (E, ...) with a learning rate for each model, their schedules, and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from ablations.design import DesignError

WARM_UP = 0.2  # of a "one-cycle" schedule's steps
WEIGHT_DECAY = 0.05  # of "adamw"
OF_TORCH: Mapping[str, Callable[..., torch.optim.Optimizer]] = {  # of a model by itself
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=WEIGHT_DECAY),
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
DECAYS = {"adamw": WEIGHT_DECAY}  # decoupled from the gradient (Loshchilov & Hutter 2019)


class Optimizer:
    """One of torch's optimizers over stacked parameters, with a learning rate for each model; steps use gradients up.

    Where all rates are the same, torch's fused kernel moves the parameters. Else it moves tensors that are zero, at a
    rate of one; times each model's rate, that is how its parameters move, and decoupled weight decay, of nothing there,
    is done here. All that changes from step to step lies in tensors, so that a step can be recorded and replayed.

    Args:
        name: "adam" (Kingma & Ba 2015), "adamw" with a weight decay of 0.05, or "sgd" with Nesterov's momentum of 0.9.
        parameters: of E models each, (E, ...), or of one model as it has them.
        learning_rates: (E,).
        scales: (steps,), what each step multiplies the rates by; steps after the last keep its scale.

    Raises:
        DesignError: there is no optimizer of that name.
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[torch.Tensor],
        learning_rates: torch.Tensor,
        scales: torch.Tensor | None = None,
    ) -> None:
        if name not in OF_TORCH:
            raise DesignError(f"optimizer {name!r} is unknown; allowed are {', '.join(OF_TORCH)}")
        where = parameters[0].device
        options = {"capturable": where.type == "cuda"} if name != "sgd" else {}
        of_torch = partial(OF_TORCH[name], fused=True, **options)
        self._parameters = parameters
        self._scales = (torch.ones(1, dtype=torch.float64) if scales is None else scales).to(where)
        self._steps = torch.zeros((), dtype=torch.int64, device=where)
        self._alike = bool((learning_rates == learning_rates[0]).all())
        if self._alike:
            # a kernel on the GPU reads a rate as float32, whatever the parameters are
            self._rates = learning_rates[0].to(where, torch.float32 if where.type == "cuda" else torch.float64)
            self._rate = self._rates.clone()
            self._of_torch = of_torch(parameters, lr=self._rate)
            return
        self._all_moves = parameters[0].new_zeros(sum(p.numel() for p in parameters))  # set to zero in one go
        parts = self._all_moves.split([p.numel() for p in parameters])
        self._moves = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        self._of_torch = of_torch(self._moves, lr=1.0)
        self._decay = DECAYS.get(name, 0.0)
        self._rates = learning_rates.to(parameters[0])

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        rates = self._rates * self._scales.take(self._steps.clamp(max=len(self._scales) - 1))
        self._steps.add_(1)
        if self._alike:
            self._rate.copy_(rates)
            self._of_torch.step()
            for parameter in self._parameters:
                parameter.grad = None
        else:
            self._move(rates)

    def _move(self, rates: torch.Tensor) -> None:
        self._all_moves.zero_()
        for parameter, move in zip(self._parameters, self._moves, strict=True):
            move.grad, parameter.grad = parameter.grad, None
        self._of_torch.step()
        for parameter, move in zip(self._parameters, self._moves, strict=True):
            if move.grad is None:
                continue
            move.grad, rate = None, beside(rates, parameter)
            if self._decay:
                parameter.mul_(1 - rate * self._decay)
            parameter.addcmul_(move, rate)


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
    the first fifth of the steps and falls so afterwards (after Smith & Topin 2019). `DesignError` lists the schedules.
    """
    if name not in SCHEDULES:
        raise DesignError(f"schedule {name!r} is unknown; allowed are {', '.join(SCHEDULES)}")
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
