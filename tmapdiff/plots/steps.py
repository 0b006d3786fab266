"""Accuracy over the number of denoising steps, for several models and seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from tmapdiff._core.checks import check_int, message
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.plots.style import look_of, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ASIDE = 0.012  # share of the axis between neighbouring models


def plot_steps(
    curves: Mapping[str, tuple[Sequence[int], ArrayLike]],
    *,
    metric: str = "Rank1@0.5",
    title: str = "",
    xlabel: str = "denoising steps",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a metric over the number of denoising steps, one line a model.

    Lines are means over seeds, error bars their standard deviation. A model of one step, such as a
    regressor, becomes a level line.

    Args:
        curves: Numbers of steps and values of the metric, in percent, by name of the model.
        metric: Name of the metric, beside the axis.
        title: Text above.
        xlabel: What the steps are.
        ax: Where to draw. Defaults to a new figure.

    Shape:
        - curves: each (S,), and (S,) or (seeds, S)

    Raises:
        ArgumentError: If there is no model, or a number of steps is no integer >= 1.
        ShapeError: If the values of a model are not one for each number of steps.
        MissingDependencyError: If matplotlib is not installed.
    """
    who = "plot_steps"
    if not curves:
        raise ArgumentError(f"{who}: expected at least one model, got none.")
    checked = {name: _checked(who, name, *curve) for name, curve in curves.items()}
    if ax is None:
        ax = new_figure(7.2, 3.6, who).subplots()
    ticks = sorted({number for steps, _ in checked.values() for number in steps})
    # Side by side, so that no error bar hides another.
    aside = max(ticks[-1] / ticks[0], 2.0) ** _ASIDE
    levels = [name for name, (steps, _) in checked.items() if len(steps) == 1 < len(ticks)]
    curved = [name for name in checked if name not in levels]
    for index, (name, (steps, values)) in enumerate(checked.items()):
        mean = values.mean(axis=0)
        deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        color, line, marker = look_of(index)
        look: dict[str, Any] = {"color": color, "ls": line, "lw": 1.6}
        if name in levels:
            places = np.array([ticks[-1] * aside ** (len(curved) + levels.index(name) + 1)])
            ax.plot((ticks[0], float(places[0])), mean.repeat(2), **look)
        else:
            places = np.array(steps) * aside ** (curved.index(name) - (len(curved) - 1) / 2)
        look |= {"marker": marker, "ms": 5, "label": name}
        ax.errorbar(places, mean, deviation, elinewidth=1, capsize=2.5, **look)
    ax.set_xscale("log")
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    ax.set(xlabel=xlabel, ylabel=f"{metric} (%)")
    ax.set_title(title, size=10)
    ax.grid(color="0.9", lw=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    # Outside, where there is nothing to hide.
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
    ax.legend(fontsize="small", handlelength=3.2, frameon=False, **place)
    return ax


def _checked(
    who: str, name: str, steps: Sequence[int], values: ArrayLike
) -> tuple[list[int], np.ndarray]:
    numbers = [check_int(who, f"steps of {name!r}", step, at_least=1) for step in steps]
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.ndim != 2 or array.shape[1] != len(numbers) or not array.size:
        expected = f"values of {name!r} of shape (S) or (seeds, S) with S = {len(numbers)}"
        raise ShapeError(message(who, expected, np.shape(values)))
    return numbers, array
