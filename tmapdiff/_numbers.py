"""Numbers that are written in a text, such as a file or a command.

`float` and `int` accept more: `1_0` as 10, `nan`, `inf`, digits of all scripts, blanks.
"""

import math
import re

_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_number(text: str) -> float | None:
    """Return a finite decimal number, or None if a text is anything else."""
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def parse_integer(text: str) -> int | None:
    """Return an integer, or None if a text is anything else."""
    return int(text) if _INTEGER.fullmatch(text) else None
