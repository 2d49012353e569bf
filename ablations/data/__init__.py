"""The data that studies are made of: simulated epidemics, images, and what is done to images in training."""

import warnings
from collections.abc import Iterable


def tell_repairs(repairs: Iterable[str]) -> None:
    """Warn of what a reader repaired, in its words; of the same once in a process, whoever asks."""
    for repair in repairs:
        warnings.warn(repair, stacklevel=1)
