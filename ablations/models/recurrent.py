"""Networks that forecast quantiles of a series from its history."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import nn

import recurve.nn
from ablations.design import DesignError
from ablations.forecasting.scores import MEDIAN, QUANTILES

LEAK = 0.3  # of the leaky units
SPECTRAL_RADIUS = 0.9  # of an echo state network's recurrent weights
KERNEL = 3  # days that a temporal convolution sees at once
RECURRENT: dict[str, Callable[..., nn.Module]] = {
    "gru": recurve.nn.GRU,
    "gru-before": lambda *sizes, **options: recurve.nn.GRU(*sizes, reset="before", **options),
    "lstm": recurve.nn.LSTM,
    "rnn": recurve.nn.RNN,
    "leaky": lambda *sizes, **options: recurve.nn.RNN(*sizes, leak=LEAK, **options),
    "esn": lambda *sizes, **options: _echo_state(recurve.nn.RNN(*sizes, leak=LEAK, **options)),
}
CELLS = (*RECURRENT, "tcn", "mlp")
STRATEGIES = ("direct", "recursive", "encoder-decoder")
KEEPING_GATE = {"lstm": 1, "gru": 1, "gru-before": 1}  # the place of the gate that keeps the state, among the gates


class Quantiles(NamedTuple):
    """23 quantiles of each day ahead: a median and, on either side of it, a width times distances that all days share.

    Every member starts with the same leading axes.
    """

    median: torch.Tensor  # (..., horizon)
    width: torch.Tensor  # (..., 2, horizon), below and above, not negative
    distance: torch.Tensor  # (..., 2, 11), below and above, ascending from the median

    def values(self) -> torch.Tensor:
        """Ascending, (..., horizon, 23)."""
        below, above = (self.width[..., None] * self.distance[..., None, :]).unbind(-3)
        median = self.median[..., None]
        return torch.cat([median - below.flip(-1), median, median + above], dim=-1)

    def loss(self, truth: torch.Tensor) -> torch.Tensor:
        """Twice the mean pinball loss against truth (..., horizon), a scalar: the mean weighted interval score.

        A quantile d widths above the median misses by u - w d and costs |u - w d| + 2 c (u - w d), with c its level
        minus one half; below the median it is the same with -u. Summed over a side, of whose n distances j are below
        u / w, this is u (2 j - n + 2 sum(c)) - w (2 (d_1 + ... + d_j) + sum((2 c - 1) d)). Of both sides together, u
        is multiplied by twice the difference of their j: a sum over quantiles never has to be taken day by day.
        """
        miss = truth - self.median
        with torch.no_grad():
            passed = torch.searchsorted(self.distance.contiguous(), torch.stack([-miss, miss], dim=-2) / self.width)
            below, above = passed.unbind(-2)
            slope = miss.sign().add(above - below, alpha=2)
        weights = _passed_weights(self.distance.dtype, self.distance.device)
        of_widths = self.width * (self.distance @ weights).gather(-1, passed)
        return ((miss * slope).sum() - of_widths.sum()) / (miss.numel() * len(QUANTILES))


@cache
def _passed_weights(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What the distances of a side are multiplied by where so many of them are passed, (11, 12).

    Made once, for a CUDA graph cannot copy it.
    """
    centre = torch.tensor(QUANTILES[MEDIAN + 1 :], dtype=torch.float64) - 0.5
    passed = torch.arange(len(centre))[:, None] < torch.arange(len(centre) + 1)
    return (2 * passed + (2 * centre - 1)[:, None]).to(device, dtype)


class Forecaster(nn.Module):
    """A network that reads a history and forecasts quantiles of each day ahead.

    `cell` is one of `CELLS`: recurrent ones, "esn" (an echo state network, whose recurrent part stays random), "tcn" (a
    temporal convolution) and "mlp" (dense layers on the whole window). `depth` counts their layers; `dense` those with
    ReLU, as wide as the hidden state, before the output.

    `strategy`: "direct" forecasts all days from the last state; "recursive" forecasts one day, feeds its median back
    and goes on; "encoder-decoder" starts a second network from the last state, which gives a state per day ahead.
    `keep_bias` is the initial bias of an LSTM's forget gate or a GRU's update gate; None leaves it to chance, as torch.
    Raises `ValueError` for a name that is unknown and for parts that do not fit together.
    """

    def __init__(
        self,
        cell: str,
        hidden_size: int,
        depth: int,
        dense: int,
        horizon: int,
        *,
        inputs: int = 1,
        history: int = 14,
        bidirectional: bool = False,
        strategy: str = "direct",
        keep_bias: float | None = None,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise DesignError(f"cell {cell!r} is unknown; allowed are {', '.join(CELLS)}")
        if strategy not in STRATEGIES:
            raise DesignError(f"strategy {strategy!r} is unknown; allowed are {', '.join(STRATEGIES)}")
        _check_fit(cell, inputs, bidirectional, strategy, keep_bias)
        self.horizon, self.strategy, self.bidirectional = horizon, strategy, bidirectional
        options = {"num_layers": depth, "batch_first": True}
        features = hidden_size * (2 if bidirectional else 1)
        self.decoder: nn.Module | None = None
        if cell in RECURRENT:
            self.encoder = RECURRENT[cell](inputs, hidden_size, bidirectional=bidirectional, **options)
            if strategy == "encoder-decoder":
                self.decoder = RECURRENT[cell](2, hidden_size, **options)
        else:
            self.encoder = (Convolutions if cell == "tcn" else Window)(inputs, hidden_size, depth, history)
        if keep_bias is not None:
            for part in (self.encoder, self.decoder):
                _set_keep_bias(part, KEEPING_GATE[cell], keep_bias)
        self.head = QuantileHead(features, dense, horizon if strategy == "direct" else 1)

    def forward(self, histories: torch.Tensor) -> Quantiles:
        """Histories (B, days, inputs) to quantiles of the change since the last day, with leading axis B."""
        states, last = self.encoder(histories)
        if self.strategy == "direct":
            return self.head(self._summary(states, last))
        if self.decoder is not None:
            states, _ = self.decoder(self._decoder_inputs(histories), last)
            median, width, distance = self.head(states)  # of one day, with leading axes (B, horizon)
            return Quantiles(median.squeeze(-1), width.squeeze(-1).mT, distance[:, 0])
        days: list[Quantiles] = []
        for _ in range(self.horizon):
            day = self.head(self._summary(states, last))
            days.append(day._replace(median=day.median + days[-1].median) if days else day)
            states, last = self.encoder(histories[:, -1:] + days[-1].median[..., None], last)
        median, width = (torch.cat(parts, dim=-1) for parts in list(zip(*days, strict=True))[:2])
        return Quantiles(median, width, days[0].distance)

    def _summary(self, states: torch.Tensor, last: Any) -> torch.Tensor:
        """The state in which each direction has read the whole history, (B, features)."""
        if last is None:
            return states[:, -1]
        hidden = last[0] if isinstance(last, tuple) else last  # (layers and their directions, B, H)
        return hidden[-2:].transpose(0, 1).flatten(1) if self.bidirectional else hidden[-1]

    def _decoder_inputs(self, histories: torch.Tensor) -> torch.Tensor:
        """The last value and how far ahead a day lies, (B, horizon, 2)."""
        last = histories[:, -1:, :1].expand(-1, self.horizon, -1)
        ahead = torch.linspace(0, 1, self.horizon, dtype=last.dtype, device=last.device)
        return torch.cat([last, ahead[:, None].expand_as(last)], dim=-1)


class QuantileHead(nn.Module):
    """Quantiles whose distances are learned as steps from one to the next, so that they cannot cross. At first the
    steps are those of a normal distribution."""

    def __init__(self, features: int, dense: int, horizon: int) -> None:
        super().__init__()
        hidden = [layer for _ in range(dense) for layer in (nn.Linear(features, features), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(features, 3 * horizon))
        upper = torch.tensor([NormalDist().inv_cdf(q) for q in QUANTILES[MEDIAN:]])
        self.steps = nn.Parameter(upper.diff().expm1().log().expand(2, -1).clone())  # softplus gives the differences

    def forward(self, states: torch.Tensor) -> Quantiles:
        """States (..., features) to quantiles with those leading axes."""
        median, *width = self.layers(states).unflatten(-1, (-1, 3)).unbind(-1)
        distance = nn.functional.softplus(self.steps).cumsum(-1)
        return Quantiles(
            median, nn.functional.softplus(torch.stack(width, dim=-2)), distance.expand(*median.shape[:-1], -1, -1)
        )


class Window(nn.Module):
    """Dense layers with ReLU on the whole history at once."""

    def __init__(self, inputs: int, hidden_size: int, depth: int, history: int) -> None:
        super().__init__()
        widths = [inputs * history, *[hidden_size] * depth]
        layers = [layer for i in range(depth) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.ReLU())]
        self.layers = nn.Sequential(*layers)

    def forward(self, histories: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.layers(histories.flatten(1))[:, None], None


class Convolutions(nn.Module):
    """Causal convolutions whose dilation doubles until the last output sees the whole history (Bai et al. 2018), each
    `depth` deep with a connection past it."""

    def __init__(self, inputs: int, hidden_size: int, depth: int, history: int) -> None:
        super().__init__()
        self.blocks, self.past = nn.ModuleList(), nn.ModuleList()
        seen, dilation, width = 1, 1, inputs
        while seen < history:
            convolutions = [
                nn.Conv1d(width if i == 0 else hidden_size, hidden_size, KERNEL, dilation=dilation)
                for i in range(depth)
            ]
            self.blocks.append(nn.ModuleList(convolutions))
            self.past.append(nn.Conv1d(width, hidden_size, 1) if width != hidden_size else nn.Identity())
            seen, dilation, width = seen + depth * (KERNEL - 1) * dilation, 2 * dilation, hidden_size

    def forward(self, histories: torch.Tensor) -> tuple[torch.Tensor, None]:
        values = histories.transpose(1, 2)
        for past, convolutions in zip(self.past, self.blocks, strict=True):
            inner = values
            for convolution in convolutions:  # type: ignore[attr-defined]
                left = (KERNEL - 1) * convolution.dilation[0]
                inner = nn.functional.relu(convolution(nn.functional.pad(inner, (left, 0))))
            values = past(values) + inner
        return values.transpose(1, 2), None


def _check_fit(cell: str, inputs: int, bidirectional: bool, strategy: str, keep_bias: float | None) -> None:
    if cell not in RECURRENT and (bidirectional or strategy != "direct"):
        raise ValueError(f"cell {cell!r} has no state: it cannot be bidirectional, and its strategy must be direct")
    if bidirectional and strategy != "direct":
        raise ValueError(
            f"a bidirectional network has no last state to go on from: strategy {strategy!r} must be direct"
        )
    if strategy == "recursive" and inputs > 1:
        raise ValueError(
            f"recursive forecasts feed back the one series they forecast, not {inputs} inputs; observe one"
        )
    if keep_bias is not None and cell not in KEEPING_GATE:
        raise ValueError(f"cell {cell!r} has no gate that keeps its state; keep_bias is for {', '.join(KEEPING_GATE)}")


def _set_keep_bias(part: Any, gate: int, value: float) -> None:
    """Give that gate the bias, whole: of torch's two bias vectors one has it and the other is zero."""
    for name, parameter in part.named_parameters() if part is not None else ():
        if name.startswith("bias"):
            rows = parameter.detach().view(-1, part.hidden_size)[gate]
            rows.fill_(value if name.startswith("bias_ih") else 0.0)


def _echo_state(network: nn.RNNBase) -> nn.RNNBase:
    """The same network with recurrent weights of the stated spectral radius, none of which learn (Jaeger 2001)."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False)
        if name.startswith("weight_hh"):
            parameter.detach().mul_(SPECTRAL_RADIUS / torch.linalg.eigvals(parameter).abs().max())
    return network
