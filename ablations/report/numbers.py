"""Numbers as people read them: two or three significant digits, signs, units and percentage points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"


def decimals(x: float) -> int:
    """Digits after the point that show `x` with two significant digits."""
    if not math.isfinite(x) or x == 0:
        return 2
    return min(max(1 - math.floor(math.log10(abs(x))), 0), 6)


def number(x: float, digits: int | None = None, sign: bool = False) -> str:
    """`x` with that many digits after the point, or with three significant ones."""
    if not math.isfinite(x):
        return "unknown"
    if digits is None:
        digits = 0 if x == int(x) else max(decimals(x) + 1, 0)
    text = f"{x:{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def amount(x: float, unit: str) -> str:
    """A cost with the unit that reads best: seconds as ms below 0.1, bytes as kB, MB or GB."""
    if unit == "s" and abs(x) < 0.1:
        return f"{number(x * 1e3)} ms"
    if unit == "bytes":
        power = next((p for p in (3, 2, 1) if abs(x) >= 1000**p), 0)
        return f"{number(x / 1000**power)} {('bytes', 'kB', 'MB', 'GB')[power]}"
    return f"{number(x)} {unit}" if unit else number(x)


def p_value(p: float) -> str:
    if not math.isfinite(p):
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def scale(response: Mapping[str, Any]) -> float:
    """What a value is multiplied by before it is shown: fractions become per cent."""
    return 100.0 if response["unit"] == "%" else 1.0


def unit_of_value(response: Mapping[str, Any]) -> str:
    """The unit with its leading space, as it follows a number."""
    return f" {response['unit']}" if response["unit"] else ""


def unit_of_difference(response: Mapping[str, Any]) -> str:
    return " percentage points" if response["unit"] == "%" else unit_of_value(response)


def with_unit(response: Mapping[str, Any]) -> str:
    """The label of a response with its unit, as it stands on axes and over columns."""
    label = heading(response["label"])
    return f"{label} ({response['unit']})" if response["unit"] else label


def heading(label: str) -> str:
    """A label on its own: its first letter large."""
    return label[:1].upper() + label[1:]


def in_sentence(label: str) -> str:
    """A label inside a sentence: its first letter small, unless it is an abbreviation."""
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


def listing(items: list[str], separator: str = ", ") -> str:
    """`a`, `a and b`, `a, b and c`; longer items are separated by semicolons."""
    if len(items) < 2:
        return "".join(items)
    last = f"{separator}and " if separator != ", " and len(items) > 2 else " and "
    return separator.join(items[:-1]) + last + items[-1]


def count(n: int, noun: str, plural: str = "") -> str:
    """`1 run`, `2 runs`, `no runs`."""
    return f"{n or 'no'} {noun if n == 1 else plural or noun + 's'}"
