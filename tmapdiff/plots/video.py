"""A video as a strip of pictures, with moments marked below."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tmapdiff._core.checks import check_int, check_range, message
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.plots.bars import Moments, check_scores, draw_bars
from tmapdiff.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 9.0  # inches of the figure
_AXES_WIDTH = 8.0  # of which about so many are the strip
_ROW = 0.24  # inches of a row of bars


def plot_video_strip(
    frames: Tensor | np.ndarray,
    timestamps: Tensor | ArrayLike,
    predictions: Moments = (),
    *,
    scores: Sequence[float] = (),
    truth: Moments = (),
    duration: float | None = None,
    title: str = "",
    num_thumbnails: int = 8,
) -> "Figure":
    """Draw frames of a video in a row over time, and moments as bars below.

    Thumbnails divide the duration evenly; each shows the frame nearest to the middle of its part.
    Dashed lines mark the ends of the true moments, or else of the best predicted one.

    Args:
        frames: Frames of the video.
        timestamps: Time of each frame, in seconds.
        predictions: Predicted moments, best first, start and end in seconds: numbered bars.
        scores: Scores of the predicted moments, written beside their numbers.
        truth: Annotated moments, start and end in seconds: hatched bars.
        duration: Seconds the video lasts. Defaults to the end of the last frame or moment.
        title: Text above, for example the query; long ones are broken into lines.
        num_thumbnails: Frames to show.

    Shape:
        - frames: (T, H, W, 3), uint8
        - timestamps: (T,)

    Raises:
        ShapeError: If a shape does not fit, or there are not as many scores as predicted moments.
        ArgumentError: If `frames` is not of uint8, there are none, `duration` is not positive, or
            `num_thumbnails` is below 1.
        MissingDependencyError: If matplotlib is not installed.
    """
    who = "plot_video_strip"
    pictures, times = _checked(who, frames, timestamps)
    check_scores(who, scores, predictions)
    check_int(who, "num_thumbnails", num_thumbnails, at_least=1)
    if duration is None:
        duration = max([float(times.max()), *(end for _, end in [*truth, *predictions])])
    seconds = check_range(who, "duration", duration, 0, open_low=True)

    # One pair of axes for all, both in the strip's seconds: bars stay below their frames, and
    # pictures keep their shape.
    width = seconds / num_thumbnails
    height = width * pictures.shape[1] / pictures.shape[2]
    row = seconds * _ROW / _AXES_WIDTH
    depth = row * (len(predictions) + bool(truth) + 0.3)
    lines = textwrap.wrap(title, 110)
    inches = _AXES_WIDTH * (height + depth) / seconds + 0.55 + 0.2 * len(lines)
    figure = new_figure(_WIDTH, inches, who)
    ax = figure.subplots()
    for place in range(num_thumbnails):
        left = place * width
        nearest = int(np.abs(times - (left + width / 2)).argmin())
        ax.imshow(pictures[nearest], extent=(left, left + width, 0, height), aspect="equal")
        if place:
            ax.plot((left, left), (0, height), color="white", lw=1)
    bottom = draw_bars(ax, truth, predictions, scores, top=-0.3 * row, row_height=row)
    for moment in truth or list(predictions)[:1]:
        for end in moment:
            for color, style in (("black", "-"), ("white", (0, (4, 3)))):
                ax.plot((end, end), (-0.3 * row, height), color=color, lw=1.2, ls=style)
    ax.set(xlim=(0, seconds), ylim=(bottom, height), xlabel="time (s)")
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
    ax.set_title("\n".join(lines), size=10, pad=8)
    return figure


def _checked(
    who: str, frames: Tensor | np.ndarray, timestamps: Tensor | ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    pictures = frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    if pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ShapeError(message(who, "frames of shape (T, H, W, 3)", pictures.shape))
    if pictures.dtype != np.uint8:
        raise ArgumentError(message(who, "frames of uint8", pictures.dtype))
    if not pictures.size:
        raise ArgumentError(message(who, "at least one frame", pictures.shape))
    if isinstance(timestamps, Tensor):
        timestamps = timestamps.to("cpu", torch.float64)
    times = np.asarray(timestamps, dtype=np.float64)
    if times.shape != pictures.shape[:1]:
        expected = f"timestamps of shape (T) with T = {len(pictures)}"
        raise ShapeError(message(who, expected, times.shape))
    return pictures, times
