"""Recognizing numbers among arbitrary values, and in text.

Parsing is stricter than `float` and `int`, which accept `1_0`, `nan`, `inf`, non-ASCII digits and
surrounding blanks.
"""

import math
import re
from numbers import Real
from typing import Any

_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_number(text: str) -> float | None:
    """Return a finite decimal number, or None if the text is not one."""
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def parse_integer(text: str) -> int | None:
    """Return an integer, or None if the text is not one."""
    return int(text) if _INTEGER.fullmatch(text) else None


def plain(value: Any) -> Any:
    """Return NumPy and torch scalars as Python numbers, None for arrays, other values unchanged."""
    if not hasattr(value, "item"):
        return value
    return None if getattr(value, "ndim", 0) else value.item()


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, not a string, boolean, None or array."""
    number = plain(value)
    # In Python, bool is a number.
    return isinstance(number, Real) and not isinstance(number, bool)


def finite_number(value: Any) -> float | None:
    """Return a real number as a float, or None if `value` is not a finite number."""
    try:
        # A fast path for large files.
        known = type(value) in (float, int)
        number = float(value) if known or is_number(value) else math.nan
    except OverflowError:  # an integer too large for a float
        return None
    return number if math.isfinite(number) else None
