import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from matplotlib.figure import Figure

from tmapdiff import plot_steps
from tmapdiff.errors import ArgumentError, ShapeError

CURVES = {
    "one": ([1, 2, 5], [[60.0, 62.0, 61.0], [58.0, 60.0, 65.0]]),
    "two": ([1, 2, 5], torch.tensor([50.0, 51.0, 52.0])),
}


def test_lines_are_means_and_bars_deviations_over_seeds():
    ax = plot_steps(CURVES, metric="Rank1@0.7", title="a title")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("denoising steps", "Rank1@0.7 (%)")
    assert ax.get_title() == "a title"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "5"]
    means = ([59, 61, 63], [50, 51, 52])
    deviations = ([2**0.5, 2**0.5, 8**0.5], [0, 0, 0])
    for container, mean, deviation in zip(ax.containers, means, deviations, strict=True):
        line, _, (bars,) = container
        np.testing.assert_allclose(line.get_ydata(), mean)
        np.testing.assert_allclose(line.get_xdata(), [1, 2, 5], rtol=0.05)
        spans = [segment[:, 1] for segment in bars.get_segments()]
        np.testing.assert_allclose([span.mean() for span in spans], mean)
        np.testing.assert_allclose([np.ptp(span) / 2 for span in spans], deviation, atol=1e-9)
    first, second = (container[0] for container in ax.containers)
    assert (first.get_xdata() < second.get_xdata()).all()  # side by side
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(first, look)() != getattr(second, look)()


def test_a_model_of_one_step_is_a_level_line():
    ax = plot_steps({**CURVES, "level": ([1], [[40.0], [44.0]])})
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2]
    (level,) = [line for line in lines if set(line.get_ydata()) == {42.0}]
    assert level.get_xdata()[0] == 1
    assert level.get_xdata()[1] > 5
    alone = plot_steps({"level": ([1], [42.0])})
    assert [label.get_text() for label in alone.get_xticklabels()] == ["1"]


def test_nothing_is_cut_off_or_covered():
    names = [f"a model with a long name, number {index}" for index in range(9)]
    ax = plot_steps({name: ([1, 2, 50], np.full((2, 3), len(name))) for name in names})
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert legend.x0 >= ax.get_window_extent().x1
    assert legend.x1 <= ax.figure.bbox.x1


def test_the_given_axes_are_used():
    own = Figure().subplots()
    assert plot_steps(CURVES, ax=own) is own


def test_bad_arguments_are_refused():
    with refuses(ArgumentError, "plot_steps: expected at least one model, got none."):
        plot_steps({})
    with refuses(ArgumentError, "plot_steps: expected steps of 'one' to be an integer >= 1, got 0"):
        plot_steps({"one": ([0], [1.0])})
    text = "plot_steps: expected values of 'one' of shape (S) or (seeds, S) with S = 2, got (3, 1)."
    with refuses(ShapeError, text):
        plot_steps({"one": ([1, 2], np.ones((3, 1)))})
    with pytest.raises(ShapeError, match="with S = 0"):
        plot_steps({"one": ([], [])})
