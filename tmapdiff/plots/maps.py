"""Heat maps of temporal maps, with matplotlib (extra `viz`)."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tmapdiff._core.checks import check_length, check_range, check_shape
from tmapdiff.errors import ArgumentError
from tmapdiff.plots.bars import SALIENCY_ROWS, Moments, bars_inches, draw_bars_panel
from tmapdiff.plots.style import COLORMAP, COLORS, PREDICTION_COLOR, TRUTH_COLOR, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

MAP_INCHES = 3.4  # height of a square map with its labels
_SALIENCY_INCHES = 0.9  # height of a saliency curve with its labels
_MAPS_PER_ROW = 5


def plot_map(
    dense: Tensor,
    mask: Tensor | None = None,
    *,
    clip_seconds: float = 1.0,
    truth: Moments = (),
    predictions: Moments = (),
    title: str = "",
    limits: tuple[float, float] | None = (0.0, 1.0),
    saliency: Tensor | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw one map, with starts going up and durations to the right, both in seconds.

    Args:
        dense: Score of every candidate, by `[start clip, duration in clips - 1]`.
        mask: True for candidates; other cells stay blank. Defaults to all finite cells.
        clip_seconds: Duration of a clip.
        truth: Annotated (start, end) in seconds, drawn as rings.
        predictions: Predicted (start, end) in seconds, best first, drawn as numbered discs.
        title: Text above the map.
        limits: Scores at the ends of the color scale. None uses the range of the map.
        saliency: Score of each clip, as by `map_saliency`, drawn as a curve below the map.
        ax: Axes to draw in. Defaults to a new figure.

    Shape:
        - dense: (N, N)
        - mask: (N, N), bool
        - saliency: (N,)

    Raises:
        ShapeError: If a shape is wrong.
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
    if saliency is not None:
        check_shape(who, "saliency", saliency, "N", sizes)
    figure: Figure | None = None
    if ax is None:
        below = 0.0 if saliency is None else _SALIENCY_INCHES
        figure = new_figure(MAP_INCHES, MAP_INCHES + below, who)
        ax = figure.subplots()

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
        # The black edge makes it visible on blank cells too.
        ring: dict[str, Any] = {"ms": 14, "mfc": "none", "clip_on": False}
        for color, width in (("black", 3.4), (TRUTH_COLOR, 1.7)):
            ax.plot(end - start - half, start + half, "o", mec=color, mew=width, **ring)
    for rank, (start, end) in enumerate(predictions, start=1):
        ax.text(
            end - start - half,
            start + half,
            str(rank),
            size=6.5,
            color="white",
            weight="bold",
            ha="center",
            va="center_baseline",
            # Better moments cover worse ones completely, so that numbers never overlap.
            zorder=5 + 1 / rank,
            bbox={"boxstyle": "circle,pad=0.15", "fc": PREDICTION_COLOR, "ec": "white", "lw": 0.7},
        )
    ax.set(xlabel="duration (s)", ylabel="start (s)", xlim=(0, seconds), ylim=(0, seconds))
    ax.set_title(title, size=10)
    ax.locator_params(nbins=5, steps=[1, 2, 5, 10])
    if saliency is not None:
        under = ax.inset_axes((0, -0.46, 1, 0.2))
        ends = np.arange(sizes["N"] + 1) * clip_seconds
        under.stairs(_array(saliency), ends, fill=True, color=COLORS[0])
        under.set(xlim=(0, seconds), xlabel="time (s)", ylabel="saliency")
        under.set_ylim(bottom=0)
        under.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
        under.locator_params(axis="y", nbins=2)
        if figure is not None and (engine := figure.get_layout_engine()) is not None:
            for _ in range(3):  # passes until axes inside of others fit
                engine.execute(figure)
    return ax


def plot_comparison(
    prediction: Tensor,
    truth: Tensor,
    mask: Tensor | None = None,
    *,
    clip_seconds: float = 1.0,
    moments: Moments = (),
    predicted_moments: Moments = (),
    scores: Sequence[float] = (),
    title: str = "",
    label: str = "IoU",
    saliency: Tensor | None = None,
    figure: "FigureBase | None" = None,
) -> "FigureBase":
    """Draw a predicted and a true map side by side, with moments as bars below.

    Args:
        prediction: Predicted score of every candidate.
        truth: True IoU of every candidate.
        mask: True for candidates. Defaults to all finite cells.
        clip_seconds: Duration of a clip.
        moments: Annotated (start, end) in seconds, drawn as rings and a hatched bar.
        predicted_moments: Predicted (start, end) in seconds, best first: numbers and bars.
        scores: Scores of the predicted moments, written beside their bars.
        title: Text above the maps, for example the query. Long titles are wrapped.
        label: Label of the color bar.
        saliency: Score of each clip, drawn as a curve above the bars.
        figure: Empty figure or subfigure to draw in. Defaults to a new one.

    Shape:
        - prediction, truth: (N, N)
        - mask: (N, N), bool
        - saliency: (N,)

    Raises:
        ShapeError: If a shape is wrong, or there is not one score per predicted moment.
        ArgumentError: If `clip_seconds` is not positive.
        MissingDependencyError: If matplotlib is not installed.

    Source: Zhang et al., arXiv 2401.08232, Fig. 3.
    """
    who = "plot_comparison"
    check_shape(who, "prediction", prediction, "N N")
    if len(scores):
        check_length(who, "scores", scores, len(predicted_moments))
    if saliency is not None:
        check_shape(who, "saliency", saliency, "N", {"N": len(prediction)})
    curve = [] if saliency is None else _array(saliency).tolist()
    rows = len(predicted_moments) + bool(moments) + SALIENCY_ROWS * bool(curve)
    figure = figure or new_figure(7.2, comparison_inches(rows), who)
    axes: dict[str, Axes] = figure.subplot_mosaic(
        [["prediction", "truth"], *([["moments"] * 2] if rows else [])],
        height_ratios=(MAP_INCHES, bars_inches(rows)) if rows else None,
    )
    left, right = axes["prediction"], axes["truth"]
    shared: dict[str, Any] = {"mask": mask, "clip_seconds": clip_seconds, "truth": moments}
    plot_map(prediction, **shared, predictions=predicted_moments, title="prediction", ax=left)
    plot_map(truth, **shared, title="truth", ax=right)
    right.set(ylabel="")
    right.tick_params(labelleft=False)
    figure.colorbar(left.images[0], ax=[left, right], label=label, shrink=0.9)
    if rows:
        seconds = len(prediction) * clip_seconds
        drawn = moments, predicted_moments, scores
        draw_bars_panel(axes["moments"], *drawn, seconds=seconds, saliency=curve)
    figure.suptitle(textwrap.fill(title, 80), size=10)
    return figure


def comparison_inches(rows: int) -> float:
    """Return the height of a figure with a title, a row of maps and `rows` rows of bars."""
    return 0.3 + MAP_INCHES + bars_inches(rows)


def plot_denoising(
    maps: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    timesteps: Sequence[int] | Tensor | None = None,
    clip_seconds: float = 1.0,
    truth: Moments = (),
    title: str = "",
) -> "Figure":
    """Draw the maps of a denoising run from noise to result, five per row.

    Args:
        maps: The map after each step.
        mask: True for candidates. Defaults to all finite cells.
        timesteps: Diffusion timestep of each map, written above it.
        clip_seconds: Duration of a clip.
        truth: Annotated (start, end) in seconds, drawn as rings.
        title: Text above all maps.

    Shape:
        - maps: each (N, N)
        - mask: (N, N), bool

    Raises:
        ShapeError: If a shape is wrong, or `timesteps` differs from `maps` in length.
        ArgumentError: If `maps` is empty or `clip_seconds` is not positive.
        MissingDependencyError: If matplotlib is not installed.
    """
    above = step_titles("plot_denoising", maps, timesteps)
    columns = min(len(maps), _MAPS_PER_ROW)
    rows = -(-len(maps) // columns)
    figure = new_figure(2.3 * columns + 0.9, 2.55 * rows + 0.4, "plot_denoising")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    drawn = axes.flat[: len(maps)]
    for index, (ax, one) in enumerate(zip(drawn, maps, strict=True)):
        plot_map(one, mask, clip_seconds=clip_seconds, truth=truth, title=above[index], ax=ax)
        if index % columns:
            ax.set(ylabel="")
        if index + columns < len(maps):
            ax.set(xlabel="")
        else:
            ax.tick_params(labelbottom=True)
    for ax in axes.flat[len(maps) :]:
        ax.remove()
    figure.colorbar(drawn[0].images[0], ax=list(drawn), label="IoU", shrink=0.8)
    figure.suptitle(textwrap.fill(title, 30 * columns), size=10)
    return figure


def step_titles(
    who: str, maps: Sequence[Tensor], timesteps: Sequence[int] | Tensor | None
) -> list[str]:
    """Return a title per denoising step: its timestep if known, otherwise its number."""
    if not len(maps):
        raise ArgumentError(f"{who}: expected at least one map, got none.")
    if timesteps is None:
        return [f"step {number}" for number in range(1, len(maps) + 1)]
    if isinstance(timesteps, Tensor):
        timesteps = timesteps.tolist()
    check_length(who, "timesteps", timesteps, len(maps))
    return [f"t = {timestep}" for timestep in timesteps]


def _array(tensor: Tensor) -> np.ndarray:
    array = tensor.detach().cpu()
    return (array if array.dtype == torch.bool else array.float()).numpy()
