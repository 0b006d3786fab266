"""Durations of videos and their features."""

from collections.abc import Mapping
from typing import Any

from tmapdiff._core.checks import message, shown
from tmapdiff._core.numbers import finite_number
from tmapdiff.errors import FeatureError


def covers(num_features: int, seconds: float, duration: float) -> bool:
    """Return whether features last about as long as their video."""
    return abs(num_features * seconds - duration) <= max(2 * seconds, 0.05 * duration)


def stated_seconds(who: str, attributes: Mapping[str, Any], name: str) -> float | None:
    """Return an attribute, or None without it; FeatureError unless it is a number > 0."""
    stated = attributes.get(name)
    if stated is None:
        return None
    seconds = finite_number(stated)
    if seconds is None or seconds <= 0:
        raise FeatureError(message(who, f"{name} to be a number > 0", shown(stated)))
    return seconds
