"""Bars over the time of a video: true moments, and predicted moments by rank."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tmapdiff.plots.style import COLORS, PREDICTION_COLOR, TRUTH_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Moments = Sequence[Sequence[float]]
SALIENCY_ROWS = 2  # height of the saliency curve, in rows of bars


def draw_bars(
    ax: "Axes",
    truth: Moments,
    predictions: Moments,
    scores: Sequence[float] = (),
    *,
    top: float = 0.0,
    row_height: float = 1.0,
) -> float:
    """Draw one row for all true moments and one per predicted moment; return the lowest y.

    Rows go down from `top`, labeled with rank and score; x is in seconds.
    """
    rows: list[tuple[str, Moments, dict[str, Any]]] = []
    if truth:
        rows.append(("truth", truth, {"facecolor": TRUTH_COLOR, "hatch": "/////"}))
    for rank, moment in enumerate(predictions, start=1):
        label = f"{rank}  ({scores[rank - 1]:.2f})" if len(scores) else f"{rank}"
        rows.append((label, [moment], {"facecolor": PREDICTION_COLOR}))
    middles = []
    for index, (_, moments, look) in enumerate(rows):
        bottom = top - (index + 0.86) * row_height
        spans = [(start, end - start) for start, end in moments]
        ax.broken_barh(spans, (bottom, 0.72 * row_height), edgecolor="black", lw=0.7, **look)
        middles.append(bottom + 0.36 * row_height)
    ax.set_yticks(middles, [label for label, _, _ in rows], size=8)
    ax.tick_params(axis="y", length=0)
    return top - len(rows) * row_height


def draw_bars_panel(
    ax: "Axes",
    truth: Moments,
    predictions: Moments,
    scores: Sequence[float] = (),
    *,
    seconds: float,
    saliency: Sequence[float] = (),
) -> None:
    """Draw rows of bars into `ax`, for a video of `seconds`.

    Above them goes the saliency of equal clips, scaled to its maximum, which is its label.
    """
    bottom, top = draw_bars(ax, truth, predictions, scores), 0
    if len(saliency):
        top, most = SALIENCY_ROWS, max(saliency)
        ends = [seconds * clip / len(saliency) for clip in range(len(saliency) + 1)]
        heights = [0.14 + (top - 0.28) * one / (most or 1) for one in saliency]
        ax.stairs(heights, ends, baseline=0.14, fill=True, color=COLORS[0])
        labels = [text.get_text() for text in ax.get_yticklabels()]
        ax.set_yticks([*ax.get_yticks(), top / 2], [*labels, f"saliency  ({most:.2f})"], size=8)
    ax.set(xlim=(0, seconds), ylim=(bottom, top), xlabel="time (s)")
    ax.grid(axis="x", color="0.85", lw=0.6)
    ax.set_axisbelow(True)


def bars_inches(rows: int) -> float:
    """Return the height of axes with `rows` rows of bars, with labels."""
    return 0.6 + 0.19 * rows if rows else 0.0
