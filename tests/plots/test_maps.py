import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.pictures import drawn_bars
from matplotlib.figure import Figure

from tmapdiff import (
    MapGrid,
    animate_denoising,
    plot_calibration,
    plot_comparison,
    plot_denoising,
    plot_map,
)
from tmapdiff.errors import ArgumentError, MissingDependencyError, ShapeError

GRID = MapGrid(8, 4, 2)
MASK = GRID.dense_mask()


def places(ax, marker):
    return [tuple(np.ravel(line.get_data())) for line in ax.lines if line.get_marker() == marker]


def moments_panel(figure):
    (panel,) = (ax for ax in figure.axes if ax.get_label() == "moments")
    return panel


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
    rings = places(ax, "o")
    assert len(rings) == 2  # black around white
    for x, y in rings:
        assert (int(x / 0.5), int(y / 0.5)) == (2, 2)
    numbers = [text.get_position() for text in ax.texts]
    assert [(int(x / 0.5), int(y / 0.5)) for x, y in numbers] == [(3, 0), (0, 4)]
    assert [text.get_text() for text in ax.texts] == ["1", "2"]
    # Where two meet, the better one covers the other.
    assert ax.texts[0].get_zorder() > ax.texts[1].get_zorder()


def test_cells_with_minus_infinity_stay_blank_without_a_mask():
    # In half precision and with gradients, too.
    dense = torch.rand(8, 8, dtype=torch.bfloat16, requires_grad=True)
    dense = dense.masked_fill(~MASK, -torch.inf)
    assert np.array_equal(plot_map(dense).images[0].get_array().mask, ~MASK.numpy())


def test_comparison_shows_two_maps_on_one_scale():
    prediction, truth = torch.rand(8, 8), torch.rand(8, 8)
    figure = plot_comparison(prediction, truth, MASK, title="a query", label="rescaled IoU")
    left, right, scale = figure.axes
    assert [left.get_title(), right.get_title()] == ["prediction", "truth"]
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0, 1)
    for ax, dense in ((left, prediction), (right, truth)):
        np.testing.assert_allclose(ax.images[0].get_array().compressed(), dense[MASK].numpy())
    assert figure.get_suptitle() == "a query"
    assert scale.get_ylabel() == "rescaled IoU"
    own = Figure()
    assert plot_comparison(torch.rand(8, 8), torch.rand(8, 8), figure=own) is own


def test_comparison_shows_moments_as_bars_over_the_whole_video():
    found, truth = [(0.5, 2.0), (3.0, 3.5)], [(1.0, 2.0), (2.5, 4.0)]
    maps, drawn = (torch.rand(8, 8), torch.rand(8, 8)), {"moments": truth, "scores": [0.9, 0.123]}
    figure = plot_comparison(*maps, clip_seconds=0.5, predicted_moments=found, **drawn)
    panel = moments_panel(figure)
    assert panel.get_xlim() == (0, 4)
    assert panel.get_xlabel() == "time (s)"
    assert drawn_bars(panel) == [truth, found[:1], found[1:]]
    labels = [text.get_text() for text in panel.get_yticklabels()]
    assert labels == ["truth", "1  (0.90)", "2  (0.12)"]


def test_saliency_is_a_curve_under_the_map_and_above_the_bars():
    saliency = torch.tensor([0, 0.1, 0.4, 0.2, 0, 0, 0.3, 0], requires_grad=True)
    ax = plot_map(torch.rand(8, 8), clip_seconds=0.5, saliency=saliency)
    (under,) = ax.child_axes
    values, ends, _ = under.patches[0].get_data()
    np.testing.assert_allclose(values, saliency.tolist())
    np.testing.assert_allclose(ends, np.arange(9) / 2)
    assert (under.get_xlim(), under.get_xlabel()) == ((0, 4), "time (s)")
    # No word is cut off, however wide the numbers are.
    for scale in (1, 0.1, 0.01):
        figure = plot_map(torch.rand(8, 8), title="a\nb", saliency=saliency * scale).figure
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) > 0
        assert (box.x1, box.y1) < (width, height)
    maps = torch.rand(8, 8), torch.rand(8, 8)
    shown = {"clip_seconds": 0.5, "saliency": saliency}
    figure = plot_comparison(*maps, **shown, predicted_moments=[(1, 2)], moments=[(1.5, 2)])
    panel = moments_panel(figure)
    assert drawn_bars(panel) == [[(1.5, 2)], [(1, 2)]]
    labels = [text.get_text() for text in panel.get_yticklabels()]
    assert labels == ["truth", "1", "saliency  (0.40)"]
    heights, ends, _ = panel.patches[0].get_data()
    np.testing.assert_allclose(ends, np.arange(9) / 2)
    above = heights - heights.min()
    np.testing.assert_allclose(above / above.max(), saliency.detach().numpy() / 0.4, atol=1e-6)
    assert panel.get_ylim()[1] > heights.max() > heights.min() > 0
    assert len(plot_comparison(*maps, **shown).axes) == 4  # without bars too
    for draw, given in ((plot_map, maps[:1]), (plot_comparison, maps)):
        with refuses(ShapeError, "expected saliency of shape (N) with N = 8, got (7,)."):
            draw(*given, saliency=saliency[:7])


def test_long_titles_are_broken_into_lines():
    title = "a person " + "walks and " * 30 + "stops"
    figure = plot_comparison(torch.rand(8, 8), torch.rand(8, 8), title=title)
    assert figure.get_suptitle().replace("\n", " ") == title
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert box.x0 > 0
    assert box.x1 < figure.bbox.x1


def test_denoising_shows_every_step():
    maps = [torch.rand(8, 8) for _ in range(3)]
    figure = plot_denoising(maps, MASK, timesteps=[999, 499, 0])
    *axes, scale = figure.axes
    assert [ax.get_title() for ax in axes] == ["t = 999", "t = 499", "t = 0"]
    for ax, dense in zip(axes, maps, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array().compressed(), dense[MASK].numpy())
    assert scale.get_ylabel() == "IoU"
    single = plot_denoising([torch.rand(8, 8)])
    assert single.axes[0].get_title() == "step 1"


@pytest.mark.parametrize("count", [5, 6, 11])
def test_many_steps_take_several_rows(count):
    *axes, _ = plot_denoising([torch.rand(8, 8)] * count).axes
    assert len(axes) == count
    assert {ax.get_subplotspec().colspan.start for ax in axes} == set(range(min(count, 5)))
    lowest = axes[-min(count, 5) :]
    assert all(ax.get_xlabel() == "duration (s)" for ax in lowest)
    assert all(label.get_visible() for ax in lowest for label in ax.get_xticklabels())
    assert {ax.get_ylabel() for ax in axes[::5]} == {"start (s)"}


@pytest.mark.process
def test_figures_can_be_saved_without_a_display_and_no_window_opens(tmp_path):
    # In a new process: other tests may have imported pyplot, which keeps windows and figures.
    code = (
        "import sys, torch, tmapdiff\n"
        "tmapdiff.plot_denoising([torch.rand(8, 8)]).savefig(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    picture = tmp_path / "map.png"
    subprocess.run([sys.executable, "-c", code, str(picture)], check=True)
    assert picture.stat().st_size > 1000


def test_bad_arguments_are_refused():
    square = torch.rand(8, 8)
    with refuses(ShapeError, "plot_map: expected dense of shape (N, N), got (8, 7)."):
        plot_map(torch.rand(8, 7))
    with refuses(ShapeError, "plot_map: expected mask of shape (N, N) with N = 8, got (4, 4)."):
        plot_map(square, MASK[:4, :4])
    with refuses(ArgumentError, "plot_map: expected clip_seconds in (0, inf), got 0."):
        plot_map(square, clip_seconds=0)
    with refuses(ShapeError, "plot_comparison: expected scores to be a list of 1, got 2."):
        plot_comparison(square, square, predicted_moments=[(0, 1)], scores=[0.5, 0.4])
    with refuses(ArgumentError, "plot_denoising: expected at least one map, got none."):
        plot_denoising([])
    with refuses(ShapeError, "plot_denoising: expected timesteps to be a list of 1, got 2."):
        plot_denoising([square], timesteps=[1, 2])


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.animation", None)
    pairs = torch.rand(10), torch.rand(10) > 0.5
    for draw, given in (
        (plot_map, torch.rand(4, 4)),
        (plot_calibration, {"one": pairs}),
        (animate_denoising, [torch.rand(4, 4)]),
    ):
        with pytest.raises(MissingDependencyError, match=r"pip install -e '.\[viz\]'"):
            draw(given)
