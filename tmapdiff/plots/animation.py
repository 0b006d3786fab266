"""Animations of denoising runs: GIF with Pillow, MP4 with ffmpeg."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tmapdiff._core.checks import check_length, check_range, message, require
from tmapdiff._core.files import written_beside
from tmapdiff.errors import ArgumentError, MissingDependencyError
from tmapdiff.plots.bars import Moments, draw_bars_panel
from tmapdiff.plots.maps import axes_over_bars, comparison_inches, plot_map, step_titles
from tmapdiff.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.animation import Animation

_HOLD = 4  # extra frames of the final result
_LONGEST_LIST = 5  # predicted moments shown as bars


def animate_denoising(
    maps: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    timesteps: Sequence[int] | Tensor | None = None,
    clip_seconds: float = 1.0,
    truth: Moments = (),
    predictions: Sequence[Moments] = (),
    title: str = "",
    label: str = "IoU",
) -> "Animation":
    """Animate a denoising run: the map after each step, and its predicted moments below.

    Args:
        maps: The map after each step.
        mask: True for candidates. Defaults to all finite cells.
        timesteps: Diffusion timestep of each map, written above it.
        clip_seconds: Duration of a clip.
        truth: Annotated (start, end) in seconds, drawn as rings and a hatched bar.
        predictions: Predicted (start, end) in seconds after each step, best first. Five are drawn.
        title: Text above the map. Long titles are wrapped.
        label: Label of the color bar.

    Shape:
        - maps: each (N, N)
        - mask: (N, N), bool

    Raises:
        ShapeError: If a shape is wrong, or the number of `timesteps` or `predictions`.
        ArgumentError: If `maps` is empty or `clip_seconds` is not positive.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> maps, timesteps = [], []
        >>> def keep(step):
        ...     maps.append(model.sampler.merge(model.grid.unpack(step.clean))[0][0])
        ...     timesteps.append(step.timestep)
        >>> found = model.localize(*query, callback=keep)  # doctest: +SKIP
        >>> run = animate_denoising(maps, timesteps=timesteps)  # doctest: +SKIP
        >>> save_animation(run, "denoising.gif")  # doctest: +SKIP
    """
    who = "animate_denoising"
    matplotlib: Any = require("matplotlib.animation", extra="viz", purpose=who)
    above = step_titles(who, maps, timesteps)
    if len(predictions):
        check_length(who, "predictions", predictions, len(maps))
    shown = [list(moments)[:_LONGEST_LIST] for moments in predictions] or [[]] * len(maps)
    rows = max(len(moments) for moments in shown) + bool(truth)
    figure = new_figure(4.4, comparison_inches(rows), who)
    axes = axes_over_bars(figure, ["map"], rows)
    figure.suptitle(textwrap.fill(title, 48), size=10)

    def draw(index: int) -> None:
        axes["map"].clear()
        plot_map(
            maps[index],
            mask,
            clip_seconds=clip_seconds,
            truth=truth,
            predictions=shown[index],
            title=f"{above[index]}   ({index + 1} of {len(maps)})",
            ax=axes["map"],
        )
        if rows:
            axes["moments"].clear()
            seconds = len(maps[index]) * clip_seconds
            draw_bars_panel(axes["moments"], truth, shown[index], seconds=seconds, num_rows=rows)

    draw(0)
    figure.colorbar(axes["map"].images[0], ax=axes["map"], label=label, shrink=0.9)
    # Keep the layout of the first frame, so that nothing moves between frames.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    order = [*range(len(maps)), *[len(maps) - 1] * _HOLD]
    animation: Animation = matplotlib.FuncAnimation(figure, draw, order, init_func=lambda: None)
    return animation


def save_animation(
    animation: "Animation", path: str | os.PathLike[str], *, steps_per_second: float = 4.0
) -> None:
    """Write an animation as .gif, or as .mp4 if ffmpeg is installed.

    Args:
        animation: Returned by `animate_denoising`.
        path: File to write.
        steps_per_second: Denoising steps shown per second.

    Raises:
        ArgumentError: If `path` has another suffix, or `steps_per_second` is not positive.
        MissingDependencyError: If matplotlib is not installed, or ffmpeg for .mp4.
        FileError: If the file cannot be written.
    """
    who = "save_animation"
    matplotlib: Any = require("matplotlib.animation", extra="viz", purpose=who)
    check_range(who, "steps_per_second", steps_per_second, 0, open_low=True)
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ArgumentError(message(who, "a path that ends in .gif or .mp4", repr(str(path))))
    writer = matplotlib.PillowWriter if suffix == ".gif" else matplotlib.FFMpegWriter
    if not writer.isAvailable():
        raise MissingDependencyError(
            f"{who}: {suffix} needs the program ffmpeg, which is not installed. Use .gif instead."
        )
    with written_beside(path) as new:
        animation.save(new, writer=writer(fps=steps_per_second))
