"""What is a number: among values of any kind, and in the texts of files and commands.

In texts, `float` and `int` accept more: `1_0` as 10, `nan`, `inf`, digits of all scripts, blanks.
"""

import math
import re
from numbers import Real
from typing import Any

_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_number(text: str) -> float | None:
    """Return a finite decimal number, or None if a text is anything else."""
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def parse_integer(text: str) -> int | None:
    """Return an integer, or None if a text is anything else."""
    return int(text) if _INTEGER.fullmatch(text) else None


def plain(value: Any) -> Any:
    """Return NumPy's and torch's numbers as Python's; None for arrays, whatever they hold."""
    if not hasattr(value, "item"):
        return value
    return None if getattr(value, "ndim", 0) else value.item()


def is_number(value: Any) -> bool:
    """Whether `value` is a real number: no text, boolean, None or array of several."""
    number = plain(value)
    # bool is a number to Python, but never what a caller means by one.
    return isinstance(number, Real) and not isinstance(number, bool)


def finite_number(value: Any) -> float | None:
    """Return a real number as a float, or None if `value` is none or not finite."""
    try:
        # First for most: asking whether these are real is what large files would be waited for.
        known = type(value) in (float, int)
        number = float(value) if known or is_number(value) else math.nan
    except OverflowError:  # an integer of more digits than a float has
        return None
    return number if math.isfinite(number) else None
