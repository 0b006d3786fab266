"""Windows of videos with more clips than the grid."""

import math
from dataclasses import replace

import torch

from tmapdiff.data.annotations import Annotation


def draw_window(
    item: Annotation, clip_seconds: float, num_clips: int, video_clips: int
) -> tuple[int, Annotation]:
    """Draw a window of `num_clips` clips around one of the annotated moments, if there is any.

    It is uniform over all windows that contain the moment, or that lie in it if the moment is
    longer. It uses torch's global random numbers.

    Returns:
        The first clip, and the annotation of the window, with times from its start.
    """
    start, end = 0.0, item.duration
    if item.moments:
        start, end = item.moments[_draw(0, len(item.moments) - 1)]
    # Tiny deviations from the edge of a clip are rounding errors.
    first = min(math.floor(start / clip_seconds + 1e-6), video_clips - 1)
    last = min(math.ceil(end / clip_seconds - 1e-6), video_clips)
    earliest = min(max(last - num_clips, 0), video_clips - num_clips)
    latest = min(first, video_clips - num_clips)
    # `earliest` and `latest` are swapped if the moment is longer than the window.
    clip = _draw(min(earliest, latest), max(earliest, latest))

    opens = clip * clip_seconds
    closes = min(opens + num_clips * clip_seconds, item.duration)
    kept = []
    for other_start, other_end in item.moments:
        inside = max(other_start, opens), min(other_end, closes)
        chosen = (other_start, other_end) == (start, end)
        if chosen or inside[1] - inside[0] > (other_end - other_start) / 2:
            kept.append((inside[0] - opens, inside[1] - opens))
    return clip, replace(item, duration=closes - opens, moments=tuple(kept))


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
