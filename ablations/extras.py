"""Optional libraries: asked for where they are needed, with the command that installs them."""

from __future__ import annotations

import importlib.util


class ExtraError(ImportError):
    """An optional library is not installed or not set up: which, and what to do."""


def require(module: str, extra: str) -> None:
    """Raise `ExtraError` unless the module is there."""
    if importlib.util.find_spec(module) is None:
        raise ExtraError(f"this needs {module}, which is not installed; `pip install 'recurve[{extra}]'` installs it")
