import wave
from fractions import Fraction

import pytest
from helpers.videos import write_video

from tmapdiff.demo import DemoLimits
from tmapdiff.errors import ArgumentError, FileError, VideoError
from tmapdiff.video import probe_video


def test_what_is_within(film):
    info = DemoLimits(max_seconds=3, max_pixels=32 * 64).check(film)
    assert (info.width, info.height) == (64, 32)
    assert info.duration == pytest.approx(3)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"max_seconds": 2}, r"^film.mp4: expected a video of at most 2 seconds, got 3 seconds\. "
                             r"Cut it to the part you need\.$"),
        ({"max_megabytes": 0.0001}, r"^film.mp4: expected a file of at most 0.0001 MB, got "),
        ({"max_pixels": 100}, "100 pixels"),
    ],
)  # fmt: skip
def test_what_is_beyond(film, limits, text):
    with pytest.raises(VideoError, match=text):
        DemoLimits(**limits).check(film)


def test_long_videos_are_not_decoded(tmp_path, monkeypatch):
    """An hour is refused after the first frame, without delay."""
    hour = write_video(tmp_path / "hour.mp4", range(0, 3601, 100))
    decoded = []
    reader = pytest.importorskip("tmapdiff.video.decoding")._AvReader
    sample = reader.sample
    monkeypatch.setattr(reader, "sample", lambda *args: decoded.append(1) or sample(*args))
    with pytest.raises(VideoError, match="at most 10 minutes, got 60 minutes"):
        DemoLimits().check(hour)
    assert not decoded


def test_files_that_do_not_declare_their_length(tmp_path):
    """A live recording of WebM has no duration in its header."""
    live = write_video(
        tmp_path / "live.webm",
        [0, 30, 60, 61],
        codec="libvpx",
        container_options={"live": "1"},
        time_base=Fraction(1, 1000),
    )
    assert probe_video(live).duration is None
    with pytest.raises(VideoError, match="at most 59 seconds, got 60 seconds"):
        DemoLimits(max_seconds=59).check(live)
    DemoLimits(max_seconds=61).check(live)


def test_what_is_no_video(tmp_path):
    with pytest.raises(FileError, match=r"none\.mp4: expected a file, got No such file"):
        DemoLimits().check(tmp_path / "none.mp4")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(16_000))
    with pytest.raises(VideoError, match=r"sound\.wav: expected a video, got a file without fra"):
        DemoLimits().check(tmp_path / "sound.wav")
    (tmp_path / "text.mp4").write_text("Dear Sir or Madam,\n")
    with pytest.raises(VideoError, match="expected a video"):
        DemoLimits().check(tmp_path / "text.mp4")


def test_numbers_are_checked():
    with pytest.raises(ArgumentError, match=r"expected max_seconds in \(0, inf\), got 0"):
        DemoLimits(max_seconds=0)
    with pytest.raises(ArgumentError, match="expected max_steps to be an integer >= 1, got 0"):
        DemoLimits(max_steps=0)
    with pytest.raises(ArgumentError, match=r"max_total_megabytes in \[200, inf\), got 199"):
        DemoLimits(max_total_megabytes=199)
