"""Seconds that videos and their features last."""

import math
from collections.abc import Mapping
from typing import Any

from tmapdiff._checks import message
from tmapdiff.data._video_ids import quoted
from tmapdiff.errors import FeatureError


def covers(num_features: int, seconds: float, duration: float) -> bool:
    """Tell whether features last about as long as their video."""
    return abs(num_features * seconds - duration) <= max(2 * seconds, 0.05 * duration)


def stated_duration(who: str, said: Mapping[str, Any]) -> float | None:
    """Return the seconds that a video lasts, if its attributes say so.

    Raises:
        FeatureError: If they say something else.
    """
    duration = said.get("duration")
    if duration is None:
        return None
    number = isinstance(duration, int | float) and not isinstance(duration, bool)
    if not number or not 0 < duration < math.inf:
        raise FeatureError(message(who, "duration to be a number > 0", quoted(duration)))
    return float(duration)
