"""The answer of an inspection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tmapdiff._core.checks import short

Kind = Literal["annotations", "features", "videos", "pipeline"]
Told = Callable[[], Any]  # called for each item, for a progress bar
_LISTED = 5  # items that a line names; all are in `Finding.items`


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        kind: What it is, in a few words that are always the same.
        text: What it is here, in a line.
        items: The videos, queries or lines concerned, all of them.
    """

    kind: str
    text: str
    items: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Inspection:
    """What is in a file or folder, and what is wrong with it.

    Attributes:
        path: What was inspected.
        kind: What it holds.
        facts: What is in it: of each file or part, numbers and texts by name.
        findings: What is wrong.
    """

    path: Path
    kind: Kind
    facts: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...] = ()


def about(kind: str, what: str, items: Sequence[Any], detail: str = "") -> list[Finding]:
    """Word a finding about several items, how many and the first few of them; none about none."""
    names = tuple(map(str, items))
    shown = short(", ".join(names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")
    # Not `format`: names of files may have braces.
    text = f"{what.replace('{n}', f'{len(names):,}')}: {shown}{detail}"
    return [Finding(kind, text, names)] if names else []


def spread(values: Sequence[float], unit: str = "") -> str:
    """Smallest, median and largest of some numbers, in words."""
    if not values:
        return "none"
    low, middle, high = (f"{value:,.4g}" for value in (min(values), median(values), max(values)))
    return low + unit if low == high else f"{low} to {high}{unit}, median {middle}{unit}"
