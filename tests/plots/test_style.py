from itertools import combinations

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from tmapdiff.plots import style


def lightness(color) -> float:
    """Return CIE L*, 0 to 100: what is left of a color in grayscale."""
    srgb = np.array(to_rgb(color))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_lines_are_told_apart_in_grayscale():
    for first, second in combinations(style.COLORS, 2):
        assert abs(lightness(first) - lightness(second)) > 18
    assert all(lightness(color) < 75 for color in style.COLORS)  # on white paper


def test_models_of_one_color_differ_in_line_or_marker():
    kinds = (style.COLORS, style.LINES, style.MARKERS)
    looks = {tuple(kind[index % len(kind)] for kind in kinds) for index in range(84)}
    assert len(looks) == 84


def test_true_and_predicted_moments_are_told_apart_in_grayscale():
    assert lightness(style.TRUTH_COLOR) - lightness(style.PREDICTION_COLOR) > 40


def test_scores_rise_with_lightness():
    steps = [lightness(colormaps[style.COLORMAP](share)[:3]) for share in np.linspace(0, 1, 33)]
    assert np.all(np.diff(steps) > 1)
