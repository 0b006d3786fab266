"""Heat maps of temporal maps, with matplotlib (extra `viz`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tmapdiff._checks import check_length, check_range, check_shape
from tmapdiff.errors import ArgumentError
from tmapdiff.plots._style import COLORMAP, PREDICTION_COLOR, TRUTH_COLOR, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase


def plot_map(
    dense: Tensor,
    mask: Tensor | None = None,
    *,
    clip_seconds: float = 1.0,
    truth: Sequence[Sequence[float]] = (),
    predictions: Sequence[Sequence[float]] = (),
    title: str = "",
    limits: tuple[float, float] | None = (0.0, 1.0),
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw one map: starts upwards, durations to the right, both in seconds.

    Args:
        dense: Score of every candidate `[start clip, duration in clips - 1]`.
        mask: Which cells are candidates; the others stay blank. All finite cells, if None.
        clip_seconds: Seconds a clip lasts.
        truth: Annotated moments, start and end in seconds: circles.
        predictions: Predicted moments, best first, start and end in seconds: numbered crosses.
        title: Text above the map.
        limits: Scores at the two ends of the colour scale. From the map, if None.
        ax: Where to draw. A new figure, if None.

    Shape:
        - dense: (N, N)
        - mask: (N, N), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `clip_seconds` is not positive.
        MissingDependencyError: If matplotlib is not installed.
    """
    who = "plot_map"
    sizes = check_shape(who, "dense", dense, "N N")
    check_range(who, "clip_seconds", clip_seconds, 0, open_low=True)
    shown = dense.isfinite()
    if mask is not None:
        check_shape(who, "mask", mask, "N N", sizes)
        shown = shown & mask
    if ax is None:
        ax = new_figure(3.6, 3.5, "plot_map").subplots()

    seconds = sizes["N"] * clip_seconds
    ax.imshow(
        np.ma.masked_array(_array(dense), ~_array(shown)),
        origin="lower",
        extent=(0, seconds, 0, seconds),
        cmap=COLORMAP,
        interpolation="nearest",
        vmin=limits[0] if limits else None,
        vmax=limits[1] if limits else None,
    )
    # A moment is drawn in the middle of its cell: columns hold the durations up to their right end.
    half = clip_seconds / 2
    for start, end in truth:
        # Ringed in black, to be seen on blank places too.
        for color, width in (("black", 3.2), (TRUTH_COLOR, 1.6)):
            ax.plot(end - start - half, start + half, "o", ms=12, mfc="none", mec=color, mew=width)
    for rank, (start, end) in enumerate(predictions, start=1):
        place = (end - start - half, start + half)
        ax.plot(*place, "x", color=PREDICTION_COLOR, ms=6, mew=1.8)
        ax.annotate(
            str(rank), place, (4, 3), textcoords="offset points", color=PREDICTION_COLOR, size=8
        )
    ax.set(xlabel="duration (s)", ylabel="start (s)", title=title)
    ax.set(xlim=(0, seconds), ylim=(0, seconds))
    return ax


def plot_comparison(
    prediction: Tensor,
    truth: Tensor,
    mask: Tensor | None = None,
    *,
    clip_seconds: float = 1.0,
    moments: Sequence[Sequence[float]] = (),
    predicted_moments: Sequence[Sequence[float]] = (),
    title: str = "",
    figure: "FigureBase | None" = None,
) -> "FigureBase":
    """Draw a predicted map beside the true one.

    Args:
        prediction: Predicted score of every candidate.
        truth: True IoU of every candidate.
        mask: Which cells are candidates. All finite cells, if None.
        clip_seconds: Seconds a clip lasts.
        moments: Annotated moments, start and end in seconds.
        predicted_moments: Predicted moments, best first, start and end in seconds.
        title: Text above both maps, for example the query.
        figure: Empty figure or sub-figure to draw in. A new one, if None.

    Shape:
        - prediction, truth: (N, N)
        - mask: (N, N), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `clip_seconds` is not positive.
        MissingDependencyError: If matplotlib is not installed.

    Source: Zhang et al., arXiv 2401.08232, Fig. 3.
    """
    figure = figure or new_figure(7.2, 3.5, "plot_comparison")
    left, right = figure.subplots(1, 2)
    plot_map(
        prediction,
        mask,
        clip_seconds=clip_seconds,
        truth=moments,
        predictions=predicted_moments,
        title="prediction",
        ax=left,
    )
    plot_map(truth, mask, clip_seconds=clip_seconds, truth=moments, title="truth", ax=right)
    figure.suptitle(title, size=10)
    figure.colorbar(left.images[0], ax=[left, right], label="IoU", shrink=0.8)
    return figure


def plot_denoising(
    maps: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    timesteps: Sequence[int] | Tensor | None = None,
    clip_seconds: float = 1.0,
    truth: Sequence[Sequence[float]] = (),
    title: str = "",
) -> "Figure":
    """Draw the maps of a denoising run side by side, from noise to result.

    Args:
        maps: The map after each step, in order of the run.
        mask: Which cells are candidates. All finite cells, if None.
        timesteps: Diffusion timestep of each map, written above it.
        clip_seconds: Seconds a clip lasts.
        truth: Annotated moments, start and end in seconds.
        title: Text above all maps.

    Shape:
        - maps: each (N, N)
        - mask: (N, N), bool

    Raises:
        ShapeError: If a shape does not fit, or `timesteps` has another length than `maps`.
        ArgumentError: If `maps` is empty or `clip_seconds` is not positive.
        MissingDependencyError: If matplotlib is not installed.
    """
    if not len(maps):
        raise ArgumentError("plot_denoising: expected at least one map, got none.")
    if isinstance(timesteps, Tensor):
        timesteps = timesteps.tolist()
    if timesteps is not None:
        check_length("plot_denoising", "timesteps", timesteps, len(maps))
    figure = new_figure(3.6 * len(maps), 3.5, "plot_denoising")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for index, (ax, one) in enumerate(zip(axes, maps, strict=True)):
        above = f"t = {timesteps[index]}" if timesteps is not None else f"step {index + 1}"
        plot_map(one, mask, clip_seconds=clip_seconds, truth=truth, title=above, ax=ax)
        if index:
            ax.set(ylabel="")
    figure.suptitle(title, size=10)
    return figure


def _array(tensor: Tensor) -> np.ndarray:
    array = tensor.detach().cpu()
    return (array if array.dtype == torch.bool else array.float()).numpy()
