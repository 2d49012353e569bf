"""Accuracies that others have published, to be drawn beside those measured."""

from __future__ import annotations

from typing import Any

import pandas as pd

LENET = "LeCun et al. 1998"
SUBMITTED = "submitted to the repository of Fashion-MNIST"
_ROWS: list[tuple[str, str, int, float, str]] = [  # of networks trained on the whole training set, without ensembles
    ("mnist", "LeNet-1", 2_600, 0.983, LENET),
    ("mnist", "LeNet-4", 17_000, 0.989, LENET),
    ("mnist", "LeNet-5", 60_000, 0.9905, LENET),
    ("fashion-mnist", "2 conv. layers (Ha)", 100_000, 0.925, SUBMITTED),
    ("fashion-mnist", "2 conv. layers (G.)", 113_000, 0.922, SUBMITTED),
    ("fashion-mnist", "5 layers (cmasch)", 500_000, 0.934, SUBMITTED),
    ("fashion-mnist", "DenseNet-BC", 768_000, 0.954, SUBMITTED),
]


def published(data: str) -> pd.DataFrame:
    """Columns name, parameters, accuracy, source; no rows where nothing is known of the data set."""
    columns: dict[str, list[Any]] = {"name": [], "parameters": [], "accuracy": [], "source": []}
    for of, *values in _ROWS:
        if of == data:
            for column, value in zip(columns, values, strict=True):
                columns[column].append(value)
    return pd.DataFrame(columns)
