"""Animations of denoising runs: GIF with Pillow, MP4 with ffmpeg."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tmapdiff._core.checks import message, require
from tmapdiff._core.files import written_beside
from tmapdiff.errors import ArgumentError, MissingDependencyError
from tmapdiff.plots.bars import Moments
from tmapdiff.plots.maps import MAP_INCHES, plot_map, step_titles
from tmapdiff.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.animation import Animation

_HOLD = 4  # extra frames of the final result
_STEPS_PER_SECOND = 4.0


def animate_denoising(
    maps: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    timesteps: Sequence[int] | Tensor | None = None,
    clip_seconds: float = 1.0,
    truth: Moments = (),
    title: str = "",
) -> "Animation":
    """Animate a denoising run: the map after each step.

    `maps`, `mask`, `timesteps`, `clip_seconds`, `truth` and `title` are as for `plot_denoising`.

    Raises:
        ShapeError, ArgumentError, MissingDependencyError: As `plot_denoising`.

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
    figure = new_figure(4.4, MAP_INCHES + 0.3, who)
    ax = figure.subplots()
    figure.suptitle(textwrap.fill(title, 48), size=10)

    def draw(index: int) -> None:
        ax.clear()
        title = f"{above[index]}   ({index + 1} of {len(maps)})"
        plot_map(maps[index], mask, clip_seconds=clip_seconds, truth=truth, title=title, ax=ax)

    draw(0)
    figure.colorbar(ax.images[0], ax=ax, label="IoU", shrink=0.9)
    # Keep the layout of the first frame, so that nothing moves between frames.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    order = [*range(len(maps)), *[len(maps) - 1] * _HOLD]
    animation: Animation = matplotlib.FuncAnimation(figure, draw, order, init_func=lambda: None)
    return animation


def save_animation(animation: "Animation", path: str | os.PathLike[str]) -> None:
    """Write an animation as .gif, or as .mp4 if ffmpeg is installed, of four steps per second.

    Args:
        animation: Returned by `animate_denoising`.
        path: File to write.

    Raises:
        ArgumentError: If `path` has another suffix.
        MissingDependencyError: If matplotlib is not installed, or ffmpeg for .mp4.
        FileError: If the file cannot be written.
    """
    who = "save_animation"
    matplotlib: Any = require("matplotlib.animation", extra="viz", purpose=who)
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ArgumentError(message(who, "a path that ends in .gif or .mp4", repr(str(path))))
    writer = matplotlib.PillowWriter if suffix == ".gif" else matplotlib.FFMpegWriter
    if not writer.isAvailable():
        raise MissingDependencyError(
            f"{who}: {suffix} needs the program ffmpeg, which is not installed. Use .gif instead."
        )
    with written_beside(path) as new:
        animation.save(new, writer=writer(fps=_STEPS_PER_SECOND))
