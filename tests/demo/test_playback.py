from fractions import Fraction

import numpy as np
import pytest
from helpers.videos import read_number, write_video

from tmapdiff.demo.playback import is_playable, write_playable
from tmapdiff.video import open_video, probe_video


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "playable"),
    [
        ("a.mp4", "libx264", "yuv420p", True),
        ("a.webm", "libvpx", "yuv420p", True),
        ("a.mp4", "mpeg4", "yuv420p", False),
        ("a.mp4", "libx264", "yuv444p", False),
        ("a.avi", "libx264", "yuv420p", False),
        ("a.mkv", "libx264", "yuv420p", False),
    ],
)
def test_what_is_playable(tmp_path, name, codec, pix_fmt, playable):
    film = write_video(
        tmp_path / name, range(4), codec=codec, pix_fmt=pix_fmt, rate=1, time_base=Fraction(1, 1000)
        if codec != "mpeg4" else Fraction(1, 1),
    )  # fmt: skip
    assert is_playable(film) == playable
    if not playable:
        write_playable(film, tmp_path / "new.mp4")
        assert is_playable(tmp_path / "new.mp4")


def test_times_stay(tmp_path):
    """Frames keep their times, even if they are unevenly spaced."""
    times = [0, Fraction(1, 2), 2, Fraction(5, 2), 4]
    film = write_video(tmp_path / "odd.mkv", times, rate=10, time_base=Fraction(1, 1000))
    write_playable(film, tmp_path / "new.mp4")
    with open_video(film) as old, open_video(tmp_path / "new.mp4") as new:
        numbers = [[read_number(one.image) for one in video.sample(4)] for video in (old, new)]
        assert new.duration == pytest.approx(old.duration, abs=0.11)
    assert numbers[0] == numbers[1]


def test_large_frames_are_made_smaller(tmp_path):
    images = [np.zeros((962, 1282, 3), np.uint8)] * 2
    film = write_video(tmp_path / "large.mkv", range(3), images=images, time_base=Fraction(1, 1000))
    write_playable(film, tmp_path / "new.mp4")
    info = probe_video(tmp_path / "new.mp4")
    assert (info.width, info.height) == (640, 480)


def test_what_is_no_video_is_not_playable(tmp_path):
    (tmp_path / "text.mp4").write_text("Dear Sir or Madam,\n")
    assert not is_playable(tmp_path / "text.mp4")
