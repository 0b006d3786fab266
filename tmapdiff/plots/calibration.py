"""Reliability diagrams and accuracy over coverage, with matplotlib (extra `viz`)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from tmapdiff.calibration import reliability_bins, risk_coverage_curve
from tmapdiff.errors import ArgumentError
from tmapdiff.plots.style import COLORS, LINES, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_calibration(
    methods: Mapping[str, tuple[Tensor, Tensor]], *, num_bins: int = 15, title: str = ""
) -> "Figure":
    """Draw reliability diagrams and risk-coverage curves of methods, in percent.

    Left: accuracy over mean confidence, in bins of equally many queries, which lies on the diagonal
    if calibrated, and a histogram of confidence. Right: accuracy over the share of queries
    answered, most certain first. The legends give ECE and AURC.

    Args:
        methods: Confidence and correctness by name of the method, as in `reliability_bins`.
        num_bins: Number of bins.
        title: Text above both plots.

    Shape:
        - methods: each (Q,), and (Q,), bool

    Raises:
        ShapeError: If a shape is wrong.
        ArgumentError: If `methods` is empty, a method has no query or a confidence outside [0, 1],
            or `num_bins` is below 1.
        MissingDependencyError: If matplotlib is not installed.

    Source: Guo et al., arXiv 1706.04599, Fig. 1; Geifman and El-Yaniv, arXiv 1705.08500, Fig. 1.
    """
    if not methods:
        raise ArgumentError("plot_calibration: expected at least one method, got none.")
    # Compute all before drawing anything, so that bad input leaves no half-drawn figure.
    measured = {
        name: (
            reliability_bins(confidence, correct, num_bins),
            risk_coverage_curve(confidence, correct),
            100 * confidence.detach().double().cpu().numpy(),
        )
        for name, (confidence, correct) in methods.items()
    }
    figure = new_figure(8.4, 4.2, "plot_calibration")
    axes: dict[str, Axes] = figure.subplot_mosaic(
        [["bins", "coverage"], ["counts", "coverage"]], height_ratios=(4, 1)
    )
    bins_ax, counts_ax, coverage_ax = axes["bins"], axes["counts"], axes["coverage"]
    bins_ax.plot((0, 100), (0, 100), "--", color="0.6", lw=1)
    for index, (name, (bins, curve, percents)) in enumerate(measured.items()):
        color, line = COLORS[index % len(COLORS)], LINES[index % len(LINES)]
        marker = MARKERS[index % len(MARKERS)]
        ece, aurc = 100 * bins.calibration_error, 100 * curve.area
        places = (100 * bins.confidence).tolist(), (100 * bins.accuracy).tolist()
        label = f"{name} (ECE {ece:.1f})"
        bins_ax.plot(*places, color=color, marker=marker, ms=4, lw=1.2, label=label)
        counts_ax.hist(percents, bins=num_bins, range=(0, 100), histtype="step", color=color)
        places = (100 * curve.coverage).tolist(), (100 * curve.accuracy).tolist()
        label = f"{name} (AURC {aurc:.1f})"
        coverage_ax.plot(*places, color=color, ls=line, lw=1.4, label=label)
    bins_ax.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100), title="reliability")
    bins_ax.tick_params(labelbottom=False)
    counts_ax.set(xlabel="confidence (%)", ylabel="queries", xlim=(0, 100))
    coverage_ax.set(xlabel="queries answered (%)", ylabel="accuracy (%)", xlim=(0, 100))
    coverage_ax.set(title="the most certain queries only")
    bins_ax.legend(loc="upper left", fontsize="small")
    coverage_ax.legend(loc="best", fontsize="small")
    figure.suptitle(title, size=10)
    return figure
