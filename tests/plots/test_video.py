import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.pictures import drawn_bars

from tmapdiff import plot_video_strip
from tmapdiff.errors import ArgumentError, ShapeError

TIMES = torch.arange(20) / 2  # 10 seconds


def video(count: int = 20, height: int = 9, width: int = 16) -> torch.Tensor:
    """Frames that hold their number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, height, width, 3)


def test_thumbnails_are_the_frames_nearest_to_the_middles_of_equal_parts():
    figure = plot_video_strip(video(), TIMES, duration=10, num_thumbnails=5)
    (ax,) = figure.axes
    shown = [int(image.get_array()[0, 0, 0]) for image in ax.images]
    assert shown == [2, 6, 10, 14, 18]
    assert [tuple(image.get_extent()[:2]) for image in ax.images] == [
        (2 * index, 2 * index + 2) for index in range(5)
    ]


@pytest.mark.parametrize(("height", "width"), [(9, 16), (16, 9)])
def test_frames_keep_their_shape_and_fill_the_width(height, width):
    moments = [(1, 4), (2, 9)]
    figure = plot_video_strip(video(20, height, width), TIMES, moments, duration=10)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    box = ax.images[0].get_window_extent()
    assert box.width / box.height == pytest.approx(width / height, rel=0.02)
    assert ax.get_window_extent().width > 0.8 * figure.bbox.width


def test_moments_are_bars_below_the_strip():
    truth, found = [(1, 3), (6, 8)], [(1, 4), (5, 9)]
    figure = plot_video_strip(
        video(), TIMES, found, scores=[0.75, 0.5], truth=truth, duration=10, title="a query"
    )
    (ax,) = figure.axes
    assert drawn_bars(ax) == [truth, found[:1], found[1:]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["truth", "1  (0.75)", "2  (0.50)"]
    assert ax.get_title() == "a query"
    assert (ax.get_xlabel(), ax.get_xlim()) == ("time (s)", (0, 10))
    top = max(bars.get_window_extent().y1 for bars in ax.collections)
    assert top < ax.images[0].get_window_extent().y0
    # The ends of the true moments are marked in the strip.
    ends = {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"}
    assert ends == {1, 3, 6, 8}


def test_the_strip_reaches_to_the_last_frame_or_moment():
    assert plot_video_strip(video(), TIMES).axes[0].get_xlim() == (0, 9.5)
    assert plot_video_strip(video(), TIMES, [(2, 12)]).axes[0].get_xlim() == (0, 12)


def test_frames_and_times_in_reverse_do():
    frames = video(4).numpy()[::-1, ..., ::-1]  # as from BGR
    figure = plot_video_strip(frames, np.arange(4.0)[::-1])
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert any(np.array_equal(shown, frame) for frame in frames)


def test_arrays_lists_and_few_frames_do(tmp_path):
    frames = video(2).numpy()
    figure = plot_video_strip(frames, [0.0, 1.0], [(0, 1)], num_thumbnails=6)
    assert len(figure.axes[0].images) == 6
    figure.savefig(tmp_path / "strip.png")
    assert (tmp_path / "strip.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        (ShapeError, {"frames": video().movedim(-1, 1)}, "frames of shape (T, H, W, 3), got (20, "),
        (ArgumentError, {"frames": video().float()}, "at least one frame of uint8, got (20"),
        (ArgumentError, {"frames": None}, "frames of uint8, got object."),
        (ArgumentError, {"frames": video()[:0]}, "at least one frame of uint8, got (0"),
        (ShapeError, {"timestamps": TIMES[:3]}, "timestamps of shape (T) with T = 20, got (3,)."),
        (ShapeError, {"scores": [1, 2]}, "scores to be a list of 1, got 2."),
        (ArgumentError, {"duration": 0}, "duration in (0, inf), got 0."),
        (ArgumentError, {"num_thumbnails": 0}, "num_thumbnails to be an integer >= 1, got 0."),
    ],
)
def test_bad_arguments_are_refused(kind, change, text):
    arguments = {"frames": video(), "timestamps": TIMES, "predictions": [(0, 1)], **change}
    with refuses(kind, f"plot_video_strip: expected {text}"):
        plot_video_strip(**arguments)
    with refuses(ArgumentError, "plot_video_strip: expected duration in (0, inf), got 0.0."):
        plot_video_strip(video(1), np.zeros(1), ())
