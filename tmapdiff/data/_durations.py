"""Durations of videos and their features."""

from collections.abc import Mapping
from typing import Any

from tmapdiff._core.checks import message, shown
from tmapdiff._core.numbers import finite_number
from tmapdiff.errors import FeatureError


def covers(num_features: int, seconds: float, duration: float) -> bool:
    """Return whether features last about as long as their video."""
    return abs(num_features * seconds - duration) <= max(2 * seconds, 0.05 * duration)


def stated_duration(who: str, attributes: Mapping[str, Any]) -> float | None:
    """Return the duration among a video's attributes, or None if there is none.

    Anything but a number > 0 is a FeatureError.
    """
    duration = attributes.get("duration")
    if duration is None:
        return None
    seconds = finite_number(duration)
    if seconds is None or seconds <= 0:
        raise FeatureError(message(who, "duration to be a number > 0", shown(duration)))
    return seconds
