"""Optional libraries: asked for where they are needed, with the command that installs them."""

from __future__ import annotations

import importlib.util


class ExtraMissing(ImportError):
    """An optional library is not installed: which, and how to install it."""


def require(module: str, extra: str) -> None:
    """Raise `ExtraMissing` unless the module is there."""
    if importlib.util.find_spec(module) is None:
        raise ExtraMissing(f"this needs {module}, which is not installed; `pip install 'recurve[{extra}]'` installs it")
