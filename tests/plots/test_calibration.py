import numpy as np
import torch
from helpers.assertions import refuses

from tmapdiff import plot_calibration, reliability_bins, risk_coverage_curve
from tmapdiff.errors import ArgumentError


def simulated(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    confidence = torch.rand(count, dtype=torch.float64)
    return confidence, torch.rand(count, dtype=torch.float64) < confidence


def test_figure_shows_bins_and_curves_of_all_methods_in_percent():
    confidence, correct = simulated(200)
    methods = {"one": (confidence, correct), "two": (confidence.square(), correct)}
    figure = plot_calibration(methods, num_bins=5, title="a title")
    bins_ax, coverage_ax, counts_ax = (
        next(ax for ax in figure.axes if ax.get_label() == name)
        for name in ("bins", "coverage", "counts")
    )
    assert figure.get_suptitle() == "a title"
    diagonal, *lines = bins_ax.lines
    np.testing.assert_allclose(diagonal.get_xdata(), diagonal.get_ydata())
    for (name, (some, right)), line, curve_line in zip(
        methods.items(), lines, coverage_ax.lines, strict=True
    ):
        bins, curve = reliability_bins(some, right, 5), risk_coverage_curve(some, right)
        np.testing.assert_allclose(line.get_xdata(), 100 * bins.confidence)
        np.testing.assert_allclose(line.get_ydata(), 100 * bins.accuracy)
        np.testing.assert_allclose(curve_line.get_xdata(), 100 * curve.coverage)
        np.testing.assert_allclose(curve_line.get_ydata(), 100 * curve.accuracy)
        assert line.get_label() == f"{name} (ECE {100 * bins.calibration_error:.1f})"
        assert curve_line.get_label() == f"{name} (AURC {100 * curve.area:.1f})"
        assert line.get_color() == curve_line.get_color()
    assert len({line.get_color() for line in lines}) == 2
    assert len(counts_ax.patches) == 2
    # A histogram's outline: the counts are its heights, each for two corners.
    heights = counts_ax.patches[0].get_xy()[1:-1:2, 1]
    expected = reliability_bins(confidence, correct, 5, equal_mass=False).count
    assert heights.tolist() == expected.tolist()
    assert "queries" in counts_ax.get_ylabel()


def test_no_method_is_refused():
    with refuses(ArgumentError, "plot_calibration: expected at least one method, got none."):
        plot_calibration({})
