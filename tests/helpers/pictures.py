"""What a picture shows, read back from it."""

from matplotlib.axes import Axes


def drawn_bars(ax: Axes) -> list[list[tuple[float, float]]]:
    """Start and end of the bars of each row, from the top; fails unless rows go downwards."""
    rows = []
    heights = []
    for bars in ax.collections:
        corners = [path.vertices for path in bars.get_paths()]
        rows.append([(float(one[:, 0].min()), float(one[:, 0].max())) for one in corners])
        heights.append(float(corners[0][:, 1].mean()))
    assert heights == sorted(heights, reverse=True)
    return rows
