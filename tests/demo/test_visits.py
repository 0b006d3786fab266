"""Messages to visitors; the page itself is tested in a browser."""

import json
import warnings
import wave
from fractions import Fraction
from types import SimpleNamespace

import pytest
from helpers.text_encoders import tiny_text_encoder
from helpers.videos import write_video

from tmapdiff import MomentLocalizationPipeline
from tmapdiff.demo import DemoLimits
from tmapdiff.video import probe_video


@pytest.fixture
def visits(film):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gradio")
    from tmapdiff.demo.visits import Visits

    def make(pipeline, listed=None, **limits):
        return Visits(pipeline, DemoLimits(**limits), listed or {"film.mp4": film})

    return make


VIDEOS = SimpleNamespace(takes_text_tracks=False)


def test_unexpected_errors_are_not_told(visits, caplog):
    def encode_video(path):
        raise RuntimeError(f"secret of {path}")

    known = {"encode_queries": lambda _: [], "unknown_words": lambda _: []}
    one = visits(SimpleNamespace(encode_video=encode_video, **known))
    *_, (said, answer) = one.ask("a red circle", 1, 1, False, "film.mp4")
    assert answer == ""
    assert "Something went wrong on the server" in said
    assert "secret" not in said
    assert "secret of" in caplog.text  # for who runs the server


def test_paths_are_not_told(visits):
    one = visits(VIDEOS)
    film = one.listed["film.mp4"]
    film.write_bytes(b"no video")
    _, _, said, *_ = one.pick("film.mp4")
    assert "film.mp4: expected a video, got" in said
    assert str(film.parent) not in said


@pytest.mark.filterwarnings("ignore::tmapdiff.errors.UnknownWordsWarning")
def test_visitors_are_told_which_words_are_unknown(visits, pipeline):
    one = visits(pipeline)
    *_, source = one.pick("film.mp4")
    *_, (said, answer) = one.ask("the azul circle salta", 1, 1, False, source)
    assert "The model does not know these words: azul, salta." in said
    assert answer
    *_, (said, answer) = one.ask("the circle", 1, 1, False, source)
    assert "does not know" not in said
    *_, (said, answer) = one.ask("el perro ladra", 1, 1, False, source)
    assert answer == ""
    assert 'role="alert"' in said
    assert "expected queries with a word that the model knows, got &#x27;el perro ladra" in said


def test_a_transcript_is_shown_and_searched(visits, tmp_path):
    words = ["hello", "the", "budget", "is", "decided", "goodbye"]
    tiny_text_encoder(words).save_pretrained(tmp_path / "encoder")
    pipe = MomentLocalizationPipeline.from_text_encoder(tmp_path / "encoder")
    track = tmp_path / "talk.vtt"
    said = [[0.0, 4.0, "Hello."], [4.0, 9.0, "The budget is decided."], [9.0, 12.0, "Goodbye."]]
    cues = (f"00:{start:06.3f} --> 00:{end:06.3f}\n{text}\n" for start, end, text in said)
    track.write_text("WEBVTT\n\n" + "\n".join(cues))
    one = visits(pipe, {"talk.vtt": track})
    shown, name, note, _, source = one.pick("talk.vtt")
    assert json.loads(shown) == said
    assert (name, "What is said in it?" in note) == ("talk.vtt", True)
    *_, (note, answer) = one.ask("the budget is decided", 1, 1, False, source)
    assert "to show its lines" in note
    best = json.loads(answer)["moments"][0]
    assert 4 <= (best["start"] + best["end"]) / 2 <= 9


def test_status_lines_are_text():
    pytest.importorskip("gradio")
    from tmapdiff.demo.visits import line

    assert "<script>" not in line("<script>alert(1)</script>")


def test_a_long_video_is_refused_whose_header_states_no_length(visits, tmp_path):
    path = tmp_path / "recorded.mkv"  # as browsers record
    base, live = Fraction(1, 1000), {"live": "1"}
    write_video(path, range(5), rate=1, time_base=base, container_options=live)
    assert probe_video(path).duration is None
    assert "is ready" in visits(VIDEOS, max_seconds=4).upload(str(path))[2]
    said = visits(VIDEOS, max_seconds=2).upload(str(path))[2]
    assert "recorded.mkv: expected a video of at most 2 seconds, got 3 seconds." in said


def test_what_is_refused(visits, tmp_path):
    one = visits(VIDEOS, max_seconds=2)
    shown, _, said, _, source = one.pick("film.mp4")
    assert "film.mp4: expected a video of at most 2 seconds, got 3 seconds." in said
    assert (shown, source) == (None, None)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(16_000))
    _, _, said, *_ = one.upload(str(tmp_path / "sound.wav"))
    assert "sound.wav: expected a video, got a file without frames" in said
    *_, (said, answer) = one.ask("a red circle", 1, 1, False, source)
    assert "There is no file to search yet" in said
    assert answer == ""


def test_packets_are_those_of_the_file_and_not_of_others_that_it_names(visits, tmp_path):
    from tmapdiff.demo.visits import _seconds_of_packets

    write_video(tmp_path / "other.ts", [Fraction(n, 10) for n in range(20)], format="mpegts")
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text("ffconcat version 1.0\nfile other.ts\n")
    assert _seconds_of_packets(tmp_path / "other.ts") == pytest.approx(1.9, abs=0.2)
    assert _seconds_of_packets(playlist) == 0
