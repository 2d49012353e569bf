"""The data that studies are made of: simulated epidemics, images, and what is done to images in training."""

import warnings
from collections.abc import Iterable


def tell_repairs(repairs: Iterable[str]) -> None:
    """Warn of what a reader repaired, in its words."""
    for repair in repairs:
        warnings.warn(repair, stacklevel=3)
