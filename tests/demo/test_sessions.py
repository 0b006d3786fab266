import pytest
from helpers.videos import write_video

from tmapdiff.data import Cue
from tmapdiff.demo import DemoLimits
from tmapdiff.demo.sessions import SessionVideos
from tmapdiff.errors import ConfigError, VideoError


@pytest.fixture
def videos(tmp_path):
    return SessionVideos(tmp_path / "kept", DemoLimits(max_seconds=10))


def files(videos):
    return [path for path in videos.folder.rglob("*") if path.is_file()]


def test_one_video_per_visitor(videos, film, tmp_path):
    first = videos.take("ann", film, move=False)
    assert film.exists()
    assert first.source == film
    assert first.shown.read_bytes() == film.read_bytes()
    assert videos.get("ann") == first
    assert videos.get("bob") is None
    second = videos.take("bob", film, move=True)
    assert not film.exists()
    assert len(files(videos)) == len(videos) == 2
    assert second.folder != first.folder
    assert len(first.folder.name) >= 32  # not to be guessed
    other = write_video(tmp_path / "other.mp4", range(4), rate=1)
    third = videos.take("ann", other, move=False)
    assert not first.folder.exists()
    videos.drop("bob")
    videos.drop("bob")
    assert files(videos) == [third.shown]
    assert other.exists()


def test_text_tracks_are_read_and_nothing_else(tmp_path, film):
    tracks = SessionVideos(tmp_path / "kept", DemoLimits(max_track_seconds=10), text_tracks=True)
    track = tmp_path / "talk.vtt"
    track.write_text("WEBVTT\n\n00:01.000 --> 00:02.500\nHello.\n")
    taken = tracks.take("ann", track, move=False)
    assert taken.cues == (Cue(1.0, 2.5, "Hello."),)
    late = tmp_path / "late.vtt"
    late.write_text("WEBVTT\n\n00:01.000 --> 00:12.000\nHello.\n")
    with pytest.raises(VideoError, match="a text track of at most 10 seconds, got 12 seconds"):
        tracks.take("ann", late, move=False)
    with pytest.raises(ConfigError, match=r"expected the suffix to be one of \.srt"):
        tracks.take("ann", film, move=False)
    assert len(tracks) == 0


def test_what_is_refused_is_deleted(videos, film, tmp_path):
    videos.take("ann", film, move=False)
    long = write_video(tmp_path / "long.mp4", [0, 20, 40])
    with pytest.raises(VideoError, match="at most 10 seconds, got 40 seconds"):
        videos.take("ann", long, move=True)
    assert not long.exists()
    assert files(videos) == []
    assert videos.get("ann") is None
    with pytest.raises(VideoError):
        videos.take("ann", write_video(tmp_path / "own.mp4", [0, 20, 40]), move=False)
    assert (tmp_path / "own.mp4").exists()  # a file of the folder is not a visitor's


def test_another_file_is_shown_of_what_browsers_do_not_play(videos, tmp_path):
    film = write_video(tmp_path / "film.avi", range(4), codec="mpeg4", rate=1, time_base=1)
    video = videos.take("ann", film, move=True)
    assert video.source.name == "film.avi"
    assert video.shown.name == "film-playable.mp4"
    videos.drop("ann")
    assert files(videos) == []


def test_who_leaves_during_an_upload(videos, film):
    videos.end("ann")
    with pytest.raises(VideoError, match=r"film\.mp4: expected an open page, got a closed one"):
        videos.take("ann", film, move=True)
    assert not film.exists()
    assert files(videos) == []
    assert videos.get("ann") is None
