"""Finds studies: each module of this folder declares one as `STUDY`, under the module's name."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from ablations.design import Study, find


def names() -> list[str]:
    """Names of the studies there are; none is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Study:
    """The study of that name; `DesignError` lists those there are."""
    return import_module(f"{__name__}.{find(name, {name: name for name in names()}, 'study')}").STUDY
