"""How the gradient of the hidden state fades, or grows, on its way back through a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ablations.report.evidence import Evidence
from ablations.report.figures.learning import lines_by_factor
from ablations.report.figures.theme import Drawing, Figure, themed
from ablations.statistics import one_factor_runs

TRAINING = {"start": "untrained", "end": "trained"}


@themed
def gradient_norms(table: pd.DataFrame, declaration: Mapping[str, Any]) -> Figure:
    """The gradient of each step's state over the last one's, by distance from the last, a line per level.

    `table` is that of `gradient_table`.
    """
    data = one_factor_runs(table, declaration)
    return lines_by_factor(data, declaration, "steps_back", "Steps back from the last", "Gradient, log10 of its norm")


def gradient_table(evidence: Evidence, when: str) -> pd.DataFrame:
    """Columns `steps_back` and `y`, the log10 of the gradient's norm over the last step's, beside those of `runs`.

    `when` is "start", before training, or "end", after it.
    """
    columns: dict[str, list[Any]] = {"key": [], "steps_back": [], "y": []}
    for key in one_factor_runs(evidence.done, evidence.declaration)["key"].unique():
        norms = evidence.predictions(key, (f"gradient_{when}",)).get(f"gradient_{when}", np.empty(0))
        columns["key"] += [key] * len(norms)
        columns["steps_back"].extend(np.arange(len(norms))[::-1])
        with np.errstate(divide="ignore"):
            columns["y"].extend(np.log10(norms.astype(float)))
    return pd.DataFrame(columns).merge(evidence.done, on="key")


def draw_untrained(evidence: Evidence) -> Drawing | None:
    """The figure of networks before their first update."""
    return _draw(evidence, "start")


def draw_trained(evidence: Evidence) -> Drawing | None:
    """The figure of networks after training."""
    return _draw(evidence, "end")


def _draw(evidence: Evidence, when: str) -> Drawing | None:
    table = gradient_table(evidence, when)
    if table.empty:
        return None
    state = TRAINING[when]
    return Drawing(
        f"{evidence.study}_gradients_{state}",
        f"What is left of the gradient, {state}",
        "Norm of the gradient of the loss with respect to the hidden state of each step, over that of the last step, "
        f"in {state} networks: mean of its logarithm over {evidence.seeds} with 95 % t interval. A line that falls "
        "vanishes, one that rises explodes, a level one remembers.",
        f"Lines of the gradient's size by steps back, {state}, one panel per factor, a line per level.",
        partial(gradient_norms, table, evidence.declaration),
        f"figures.gradient_norms(figures.gradient_table(evidence, {when!r}), evidence.declaration)",
    )
