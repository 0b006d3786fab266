"""Results of inspections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tmapdiff.data.annotations import listed

Kind = Literal["annotations", "features", "videos", "pipeline"]
OnItem = Callable[[], Any]  # called for each item, for a progress bar


@dataclass(frozen=True)
class Finding:
    """A problem: `kind` in a few fixed words, `text` in one line, and all `items` concerned."""

    kind: str
    text: str
    items: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Inspection:
    """What is at a `path`: `kind`, `facts` (numbers and texts by name, per file), `findings`."""

    path: Path
    kind: Kind
    facts: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...] = ()


def about(kind: str, what: str, items: Sequence[Any], detail: str = "") -> list[Finding]:
    """Return a finding that counts some items and names the first few, or nothing without items."""
    names = tuple(map(str, items))
    # Not `format`, as file names may have braces.
    text = f"{what.replace('{n}', f'{len(names):,}')}: {listed(names)}{detail}"
    return [Finding(kind, text, names)] if names else []


def spread(values: Sequence[float], unit: str = "") -> str:
    """Describe numbers by their minimum, maximum and median."""
    if not values:
        return "none"
    low, middle, high = (f"{value:,.4g}" for value in (min(values), median(values), max(values)))
    return low + unit if low == high else f"{low} to {high}{unit}, median {middle}{unit}"
