import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from matplotlib import animation as matplotlib_animation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from tmapdiff import MapGrid, animate_denoising, save_animation
from tmapdiff.errors import ArgumentError, FileError, MissingDependencyError, ShapeError

GRID = MapGrid(8, 4, 2)
MASK = GRID.dense_mask()


def animated(*arguments, **options):
    """Animate, without matplotlib's warning about animations that are never rendered."""
    animation = animate_denoising(*arguments, **options)
    animation._draw_was_started = True
    return animation


def frames_of(path) -> list[tuple[np.ndarray, float]]:
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            found.append((np.asarray(image.convert("RGB"), dtype=float), image.info["duration"]))
    return found


def test_the_animation_has_a_frame_per_step_and_holds_the_result(tmp_path):
    # Equal maps count as steps too.
    maps = [torch.full((8, 8), value) for value in (0.0, 0.5, 0.5, 1.0)]
    animation = animate_denoising(maps, MASK, timesteps=[999, 499, 250, 0], title="a query")
    save_animation(animation, tmp_path / "run.gif")
    frames = frames_of(tmp_path / "run.gif")
    assert [duration for _, duration in frames] == [250, 250, 250, 1250]
    # The maps get lighter.
    places = [frame[frame.shape[0] // 2, frame.shape[1] // 4].sum() for frame, _ in frames]
    assert places == sorted(places)
    assert places[0] < places[-1] - 100


def test_nothing_trembles():
    maps = [torch.rand(8, 8) for _ in range(3)]
    animation = animated(maps, timesteps=[999, 5, 0])
    figure = animation._fig
    canvas, seen = FigureCanvasAgg(figure), []
    for index in range(3):
        animation._func(index)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())
        below = int(figure.axes[0].get_window_extent().y0)
        places = [ax.get_window_extent().bounds for ax in figure.axes]
        seen.append((places, pixels[-below + 2 : -below + 40].copy()))
    assert (seen[0][1] < 100).any()
    for places, pixels in seen[1:]:
        assert places == seen[0][0]
        assert (pixels == seen[0][1]).all()  # the labels of the map's axes


def test_frames_show_maps_moments_and_timesteps():
    maps = [torch.rand(8, 8) for _ in range(2)]
    timesteps = torch.tensor([7, 3])
    animation = animated(maps, MASK, timesteps=timesteps, truth=[(1, 4)])
    ax = animation._fig.axes[0]
    for index in (1, 0):
        animation._func(index)
        (image,) = ax.images
        np.testing.assert_allclose(image.get_array().compressed(), maps[index][MASK].numpy())
        assert ax.get_title() == f"t = {(7, 3)[index]}   ({index + 1} of 2)"


def test_bad_arguments_are_refused(tmp_path):
    square = torch.rand(8, 8)
    with refuses(ArgumentError, "animate_denoising: expected at least one map, got none."):
        animate_denoising([])
    with refuses(ShapeError, "animate_denoising: expected timesteps to be a list of 1, got 2."):
        animate_denoising([square], timesteps=[1, 2])
    animation = animated([square])
    with refuses(ArgumentError, "expected a path that ends in .gif or .mp4, got 'run.avi'."):
        save_animation(animation, "run.avi")
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot write"):
        save_animation(animation, tmp_path / "file" / "run.gif")


def test_mp4_asks_for_ffmpeg(tmp_path, monkeypatch):
    animation = animated([torch.rand(8, 8)] * 2)
    if matplotlib_animation.FFMpegWriter.isAvailable():
        save_animation(animation, tmp_path / "run.mp4")
        assert (tmp_path / "run.mp4").stat().st_size > 1000
    monkeypatch.setitem(matplotlib_animation.mpl.rcParams, "animation.ffmpeg_path", "no-ffmpeg")
    text = (
        "save_animation: .mp4 needs the program ffmpeg, which is not installed. Use .gif instead."
    )
    with refuses(MissingDependencyError, text):
        save_animation(animation, tmp_path / "run.mp4")
    assert not list(tmp_path.glob("*.mp4.*"))
