"""Messages to visitors; the page itself is tested in a browser."""

import json
import warnings
from types import SimpleNamespace

import pytest
from helpers.text_encoders import tiny_text_encoder

from tmapdiff import MomentLocalizationPipeline
from tmapdiff.demo import DemoLimits
from tmapdiff.demo.sessions import SessionVideos


@pytest.fixture
def visits(tmp_path, film):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gradio")
    from tmapdiff.demo.visits import Visits

    def make(pipeline, listed=None):
        tracks = getattr(pipeline, "takes_text_tracks", False)
        videos = SessionVideos(tmp_path / "kept", DemoLimits(), text_tracks=tracks)
        return Visits(pipeline, videos, listed or {"film.mp4": film})

    return make


ANN = SimpleNamespace(session_hash="ann")


def test_unexpected_errors_are_not_told(visits, caplog):
    def encode_video(path):
        raise RuntimeError(f"secret of {path}")

    known = {"encode_queries": lambda _: [], "unknown_words": lambda _: []}
    one = visits(SimpleNamespace(encode_video=encode_video, **known))
    one.pick("film.mp4", ANN)
    *_, (said, answer) = one.ask("a red circle", 1, 1, False, ANN)
    assert answer == ""
    assert "Something went wrong on the server" in said
    assert "secret" not in said
    assert "secret of" in caplog.text  # for who runs the server


def test_paths_are_not_told(visits):
    one = visits(None)
    film = one.listed["film.mp4"]
    film.write_bytes(b"no video")
    *_, said, _ = one.pick("film.mp4", ANN)
    assert "film.mp4: expected a video, got" in said
    assert str(film.parent) not in said


@pytest.mark.filterwarnings("ignore::tmapdiff.errors.UnknownWordsWarning")
def test_visitors_are_told_which_words_are_unknown(visits, pipeline):
    one = visits(pipeline)
    one.pick("film.mp4", ANN)
    *_, (said, answer) = one.ask("the azul circle salta", 1, 1, False, ANN)
    assert "The model does not know these words: azul, salta." in said
    assert answer
    *_, (said, answer) = one.ask("the circle", 1, 1, False, ANN)
    assert "does not know" not in said
    *_, (said, answer) = one.ask("el perro ladra", 1, 1, False, ANN)
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
    shown, name, note, _ = one.pick("talk.vtt", ANN)
    assert json.loads(shown) == said
    assert (name, "What is said in it?" in note) == ("talk.vtt", True)
    *_, (note, answer) = one.ask("the budget is decided", 1, 1, False, ANN)
    assert "to show its lines" in note
    best = json.loads(answer)["moments"][0]
    assert 4 <= (best["start"] + best["end"]) / 2 <= 9


def test_what_is_said_is_text(visits):
    one = visits(None)
    *_, said, _ = one.pick("<script>alert(1)</script>", ANN)
    assert "There is no such video to pick." in said
    from tmapdiff.demo.visits import line

    assert "<script>" not in line("<script>alert(1)</script>")


def test_only_files_that_were_sent_are_taken(visits, tmp_path):
    one = visits(None)
    inside = one.videos.folder / "link.mp4"
    inside.parent.mkdir()
    inside.symlink_to(tmp_path / "film.mp4")
    beside = f"{one.videos.folder}/../film.mp4"
    paths = (tmp_path / "film.mp4", inside, beside, "http://example.org/film.mp4")
    for sent in (*({"path": str(path)} for path in paths), {}, None):
        *_, said, _ = one.upload(sent, ANN)
        assert "The upload did not arrive" in said
    assert (tmp_path / "film.mp4").exists()
    assert len(one.videos) == 0


def test_closing_the_page_forgets(visits):
    one = visits(None)
    one.pick("film.mp4", ANN)
    assert len(one.videos) == 1
    one.end(ANN)
    assert len(one.videos) == 0
