import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from matplotlib.figure import Figure

from tmapdiff import MapGrid, plot_comparison, plot_denoising, plot_map
from tmapdiff.errors import ArgumentError, MissingDependencyError, ShapeError

GRID = MapGrid(8, 4, 2)
MASK = GRID.dense_mask()


def places(ax, marker):
    return [tuple(np.ravel(line.get_data())) for line in ax.lines if line.get_marker() == marker]


def test_axes_are_in_seconds_and_only_candidates_are_drawn():
    dense = torch.rand(8, 8)
    ax = plot_map(dense, MASK, clip_seconds=0.5, title="a title")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("duration (s)", "start (s)")
    assert ax.get_title() == "a title"
    assert ax.get_xlim() == ax.get_ylim() == (0, 4)
    (image,) = ax.images
    assert image.origin == "lower"
    assert np.array_equal(image.get_array().mask, ~MASK.numpy())
    np.testing.assert_allclose(image.get_array().compressed(), dense[MASK].numpy())


def test_moments_are_marked_inside_their_cells():
    # The cell of the moment (1 s, 2.5 s) with clips of 0.5 s is row 2, column 2.
    ax = plot_map(
        torch.rand(8, 8), MASK, clip_seconds=0.5, truth=[(1, 2.5)], predictions=[(0, 2), (2, 2.5)]
    )
    for x, y in places(ax, "o"):
        assert (int(x / 0.5), int(y / 0.5)) == (2, 2)
    assert [(int(x / 0.5), int(y / 0.5)) for x, y in places(ax, "x")] == [(3, 0), (0, 4)]
    assert [text.get_text() for text in ax.texts] == ["1", "2"]


def test_cells_with_minus_infinity_stay_blank_without_a_mask():
    dense = torch.rand(8, 8).masked_fill(~MASK, -torch.inf)
    assert np.array_equal(plot_map(dense).images[0].get_array().mask, ~MASK.numpy())


def test_comparison_shows_two_maps_on_one_scale():
    figure = plot_comparison(torch.rand(8, 8), torch.rand(8, 8), MASK, title="a query")
    assert [ax.get_title() for ax in figure.axes[:2]] == ["prediction", "truth"]
    assert {ax.images[0].get_clim() for ax in figure.axes[:2]} == {(0, 1)}
    assert figure.get_suptitle() == "a query"
    own = Figure()
    assert plot_comparison(torch.rand(8, 8), torch.rand(8, 8), figure=own) is own


def test_denoising_shows_every_step():
    figure = plot_denoising([torch.rand(8, 8)] * 3, MASK, timesteps=[999, 499, 0])
    assert [ax.get_title() for ax in figure.axes] == ["t = 999", "t = 499", "t = 0"]
    single = plot_denoising([torch.rand(8, 8)])
    assert [ax.get_title() for ax in single.axes] == ["step 1"]


def test_pictures_can_be_saved_without_a_display_and_no_window_opens(tmp_path):
    # In a process of its own: others may have loaded pyplot, which keeps windows and figures.
    code = (
        "import sys, torch, tmapdiff\n"
        "tmapdiff.plot_denoising([torch.rand(8, 8)]).savefig(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    picture = tmp_path / "map.png"
    subprocess.run([sys.executable, "-c", code, str(picture)], check=True)
    assert picture.stat().st_size > 1000


def test_half_precision_and_gradients_can_be_drawn():
    plot_map(torch.rand(8, 8, dtype=torch.bfloat16, requires_grad=True), MASK)


def test_bad_arguments_are_refused():
    square = torch.rand(8, 8)
    with refuses(ShapeError, "plot_map: expected dense of shape (N, N), got (8, 7)."):
        plot_map(torch.rand(8, 7))
    with refuses(ShapeError, "plot_map: expected mask of shape (N, N) with N = 8, got (4, 4)."):
        plot_map(square, MASK[:4, :4])
    with refuses(ArgumentError, "plot_map: expected clip_seconds in (0, inf), got 0."):
        plot_map(square, clip_seconds=0)
    with refuses(ArgumentError, "plot_denoising: expected at least one map, got none."):
        plot_denoising([])
    with refuses(ShapeError, "plot_denoising: expected timesteps to be a list of 1, got 2."):
        plot_denoising([square], timesteps=[1, 2])


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tmapdiff\[viz\]'"):
        plot_map(torch.rand(4, 4))
