"""A video as a strip of frames, with moments marked below."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tmapdiff._core.checks import check_int, check_length, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.plots.bars import Moments, draw_bars
from tmapdiff.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 9.0  # of the figure, in inches
_AXES_WIDTH = 8.0  # of the strip, roughly, in inches
_ROW = 0.24  # height of a row of bars, in inches


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
    """Draw frames of a video in a row, and moments as bars below.

    Each thumbnail shows the frame nearest to the middle of an equal part of the video. Dashed lines
    mark where the true moments start and end, or the best predicted one if none are given.

    Args:
        frames: Frames of the video.
        timestamps: Time of each frame, in seconds.
        predictions: Predicted (start, end) in seconds, best first, drawn as numbered bars.
        scores: Scores of the predicted moments, written beside their numbers.
        truth: Annotated (start, end) in seconds, drawn as hatched bars.
        duration: Duration of the video in seconds. Defaults to the last timestamp or moment's end.
        title: Text above, for example the query. Long titles are wrapped.
        num_thumbnails: Number of frames shown.

    Shape:
        - frames: (T, H, W, 3), uint8
        - timestamps: (T,)

    Raises:
        ShapeError: If a shape is wrong, or there is not one score per predicted moment.
        ArgumentError: If `frames` is empty or not uint8, `duration` is not positive, or
            `num_thumbnails` is below 1.
        MissingDependencyError: If matplotlib is not installed.
    """
    who = "plot_video_strip"
    images, times = _checked(who, frames, timestamps)
    if len(scores):
        check_length(who, "scores", scores, len(predictions))
    check_int(who, "num_thumbnails", num_thumbnails, at_least=1)
    if duration is None:
        duration = max([float(times.max()), *(end for _, end in [*truth, *predictions])])
    seconds = check_range(who, "duration", duration, 0, open_low=True)

    # Frames and bars share axes, with both x and y in seconds of the strip: bars stay below their
    # frames, and frames keep their aspect ratio.
    width = seconds / num_thumbnails
    height = width * images.shape[1] / images.shape[2]
    row = seconds * _ROW / _AXES_WIDTH
    depth = row * (len(predictions) + bool(truth) + 0.3)
    lines = textwrap.wrap(title, 110)
    inches = _AXES_WIDTH * (height + depth) / seconds + 0.55 + 0.2 * len(lines)
    figure = new_figure(_WIDTH, inches, who)
    ax = figure.subplots()
    for place in range(num_thumbnails):
        left = place * width
        nearest = int(np.abs(times - (left + width / 2)).argmin())
        ax.imshow(images[nearest], extent=(left, left + width, 0, height), aspect="equal")
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
    if not isinstance(frames, Tensor):
        frames = np.ascontiguousarray(frames)  # torch has no negative strides, as of BGR to RGB
        if frames.dtype != np.uint8:
            raise ArgumentError(message(who, "frames of uint8", frames.dtype))
    images = torch.as_tensor(frames).cpu()
    sizes = check_shape(who, "frames", images, "T H W 3")
    if images.dtype != torch.uint8 or not images.numel():
        got = f"{tuple(images.shape)} of {images.dtype}"
        raise ArgumentError(message(who, "at least one frame of uint8", got))
    if not isinstance(timestamps, Tensor):
        timestamps = np.array(timestamps, dtype=np.float64)
    times = torch.as_tensor(timestamps, dtype=torch.float64).cpu()
    check_shape(who, "timestamps", times, "T", {"T": sizes["T"]})
    return images.numpy(), times.numpy()
