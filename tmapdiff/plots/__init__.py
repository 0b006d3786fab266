"""Figures of maps, denoising runs and results, drawn with matplotlib (extra `viz`)."""

from tmapdiff.plots.animation import animate_denoising, save_animation
from tmapdiff.plots.calibration import plot_calibration
from tmapdiff.plots.maps import plot_comparison, plot_denoising, plot_map
from tmapdiff.plots.video import plot_video_strip

__all__ = [  # from a map to results
    "animate_denoising",
    "plot_calibration",
    "plot_comparison",
    "plot_denoising",
    "plot_map",
    "plot_video_strip",
    "save_animation",
]
