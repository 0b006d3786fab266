"""Pictures of maps, of runs and of results: for people to look at, with matplotlib."""

from tmapdiff.plots.calibration import plot_calibration
from tmapdiff.plots.maps import plot_comparison, plot_denoising, plot_map

__all__ = ["plot_calibration", "plot_comparison", "plot_denoising", "plot_map"]
