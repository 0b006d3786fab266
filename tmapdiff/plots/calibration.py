"""Reliability diagrams and accuracy over coverage, with matplotlib (extra `viz`)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from tmapdiff.calibration import reliability_bins, risk_coverage_curve
from tmapdiff.errors import ArgumentError
from tmapdiff.plots.style import COLORS, LINES, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


def plot_calibration(
    methods: Mapping[str, tuple[Tensor, Tensor]],
    *,
    num_bins: int = 15,
    equal_mass: bool = True,
    title: str = "",
    figure: "FigureBase | None" = None,
) -> "FigureBase":
    """Draw how confidence and accuracy of some methods go together, all in percent.

    Left a reliability diagram: accuracy over mean confidence of each bin, on the diagonal if
    calibrated, with the number of queries by confidence below it. Right the accuracy over the share
    of queries answered, the most certain first. The legends name ECE and AURC.

    Args:
        methods: Confidence and correctness, as in `reliability_bins`, by the name of the method.
        num_bins: Bins of the diagram.
        equal_mass: Bins hold as many queries each; if False, they are as wide each.
        title: Text above both.
        figure: Empty figure or sub-figure to draw in. A new one, if None.

    Shape:
        - methods: each (Q,), and (Q,), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If there is no method, or one of them has no query or a confidence outside
            [0, 1]; or `num_bins` is below 1.
        MissingDependencyError: If matplotlib is not installed.

    Source: Guo et al., arXiv 1706.04599, Fig. 1; Geifman and El-Yaniv, arXiv 1705.08500, Fig. 1.
    """
    if not methods:
        raise ArgumentError("plot_calibration: expected at least one method, got none.")
    # All is checked before anything is drawn.
    measured = {
        name: (
            reliability_bins(confidence, correct, num_bins, equal_mass=equal_mass),
            risk_coverage_curve(confidence, correct),
            100 * confidence.detach().double().cpu().numpy(),
        )
        for name, (confidence, correct) in methods.items()
    }
    if figure is None:
        figure = new_figure(8.4, 4.2, "plot_calibration")
    axes: dict[str, Axes] = figure.subplot_mosaic(
        [["bins", "coverage"], ["counts", "coverage"]], height_ratios=(4, 1)
    )
    bins_ax, counts_ax, coverage_ax = axes["bins"], axes["counts"], axes["coverage"]
    bins_ax.plot((0, 100), (0, 100), "--", color="0.6", lw=1)
    for index, (name, (bins, curve, percents)) in enumerate(measured.items()):
        color = COLORS[index % len(COLORS)]
        bins_ax.plot(
            _percents(bins.confidence),
            _percents(bins.accuracy),
            color=color,
            marker=MARKERS[index % len(MARKERS)],
            ms=4,
            lw=1.2,
            label=f"{name} (ECE {100 * bins.calibration_error:.1f})",
        )
        counts_ax.hist(percents, bins=num_bins, range=(0, 100), histtype="step", color=color)
        coverage_ax.plot(
            _percents(curve.coverage),
            _percents(curve.accuracy),
            color=color,
            ls=LINES[index % len(LINES)],
            lw=1.4,
            label=f"{name} (AURC {100 * curve.area:.1f})",
        )
    bins_ax.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100), title="reliability")
    bins_ax.tick_params(labelbottom=False)
    counts_ax.set(xlabel="confidence (%)", ylabel="queries", xlim=(0, 100))
    coverage_ax.set(xlabel="queries answered (%)", ylabel="accuracy (%)", xlim=(0, 100))
    coverage_ax.set(title="the most certain queries only")
    bins_ax.legend(loc="upper left", fontsize="small")
    coverage_ax.legend(loc="best", fontsize="small")
    figure.suptitle(title, size=10)
    return figure


def _percents(shares: Tensor) -> list[float]:
    percents: list[float] = (100 * shares).tolist()
    return percents
