import json
import os

import pytest
import torch
from helpers.assertions import refuses
from helpers.pipelines import QUERIES, make_pictures, make_pipe, write_video

from tmapdiff import FrameEncoder, MomentLocalizationPipeline
from tmapdiff.errors import AnnotationError, ArgumentError, ConfigError, FileError
from tmapdiff.pipelines import list_sources
from tmapdiff.recipes import answer_videos, pair
from tmapdiff.recipes.answers import _digest


@pytest.fixture(scope="module")
def pipe():
    return make_pipe(frame_encoder=FrameEncoder("test_resnet", pretrained=False))


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for index, name in enumerate(("a.mp4", "b.mp4")):
        write_video(folder / name, make_pictures(16, index))
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "notes.txt").touch()
    return folder


def ask(pipe, videos, out=None, sentences=QUERIES, **options):
    return [*answer_videos(pipe, pair(list_sources([videos]), sentences, "product"), out=out,
                           settings={"model": "m"}, **options)]  # fmt: skip


def test_each_video_is_read_once_and_answered_as_alone(pipe, videos, monkeypatch):
    seen = []
    encode = FrameEncoder.encode
    monkeypatch.setattr(
        FrameEncoder, "encode", lambda self, *a, **k: seen.append(1) or encode(self, *a, **k)
    )
    pipe._videos.clear()
    found = ask(pipe, videos, top_n=2, seed=3)
    assert len(seen) == 2
    assert [[one["sentence"] for one in several] for several in found] == [QUERIES] * 3
    alone = ask(pipe, videos / "b.mp4", sentences=QUERIES[1:2], top_n=2, seed=3)[0][0]
    assert alone == found[1][1]
    assert len(alone["moments"]) == 2
    assert all("bad.mp4" in one["error"] and "moments" not in one for one in found[2])


def test_a_run_goes_on_where_it_was(pipe, videos, tmp_path, monkeypatch):
    out = tmp_path / "answers.jsonl"
    running = answer_videos(
        pipe, pair(list_sources([videos]), QUERIES, "product"), out=out, settings={"model": "m"}
    )
    first = next(running)
    assert [json.loads(line) for line in out.read_text().splitlines()] == first
    running.close()
    with out.open("a") as file:
        file.write('{"video": "half wr')
    asked = []
    call = type(pipe).__call__
    monkeypatch.setattr(
        type(pipe), "__call__",
        lambda self, video, *a, **k: asked.append(video.name) or call(self, video, *a, **k),
    )  # fmt: skip
    everything = ask(pipe, videos, out)
    assert asked == ["b.mp4", "bad.mp4"]
    assert everything[0] == first
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [one for several in everything for one in several]
    # Second run: failed videos, changed videos and new sentences are localized.
    asked.clear()
    assert ask(pipe, videos, out)[:2] == everything[:2]
    assert asked == ["bad.mp4"]
    asked.clear()
    os.utime(videos / "a.mp4", (1, 1))
    again = ask(pipe, videos, out, sentences=[*QUERIES, "the person"])
    assert asked == ["a.mp4", "b.mp4", "bad.mp4"]
    assert again[1][:3] == everything[1]
    assert again[0][0]["source_mtime_ns"] == 10**9
    # The file has no answers for the old video, not even of sentences that are not asked again.
    os.utime(videos / "a.mp4", (2, 2))
    ask(pipe, videos, out, sentences=QUERIES[:1])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["sentence"] for one in lines if one["video"] == str(videos / "a.mp4")] == QUERIES[
        :1
    ]


def test_files_that_are_no_answers_stay_as_they_are(pipe, videos, tmp_path):
    out = tmp_path / "answers.jsonl"
    ask(pipe, videos / "a.mp4", out, sentences=QUERIES[:1], top_n=2)
    answer = json.loads(out.read_text())

    def good(**fields):
        return json.dumps({**answer, **fields}) + "\n"

    for content, kind, text in (
        ("my notes", AnnotationError, "line 1: Expecting value"),
        ('{"a": 1}\n', AnnotationError, "line 1: expected an answer of tmapdiff localize, got oth"),
        ('{"video": "a", "sentence": "b", "model": "other"}\n', ArgumentError,
         "line 1: expected answers with model = 'm', got 'other'. Use another file."),
        (good() + "x\n", AnnotationError, "line 2: Expecting value"),
        # From the same model name before retraining, and from another call.
        (good(pipeline_sha256="0"), ArgumentError, "line 1: expected answers with pipeline_sha256"),
        (good(top_n=3), ArgumentError, "line 1: expected answers with top_n = 2, got 3. Use anoth"),
    ):  # fmt: skip
        out.write_text(content)
        with refuses(kind, text):
            ask(pipe, videos, out, top_n=2)
        assert out.read_text() == content
    with refuses(FileError, "cannot write"):
        ask(pipe, videos, videos / "a.mp4" / "answers.jsonl")


def test_weights_and_settings_tell_a_pipeline_from_others(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = MomentLocalizationPipeline.from_pretrained(tmp_path)
    same = _digest(pipe)
    assert _digest(again) == same
    assert _digest(MomentLocalizationPipeline.from_pretrained(tmp_path, durations=[2])) != same
    with torch.no_grad():
        next(again.localizer.parameters()).add_(1)
    assert _digest(again) != same


def test_what_is_asked_of_which(videos, tmp_path):
    listed = list_sources([videos, videos / "a.mp4"])
    assert [one.name for one in listed] == ["a.mp4", "b.mp4", "bad.mp4", "a.mp4"]
    a, b, bad, _ = listed
    assert pair(listed, ["x", "y", "z", "w"], "zip") == {a: ["x", "w"], b: ["y"], bad: ["z"]}
    assert pair(listed, ["x"], "product") == {a: ["x"], b: ["x"], bad: ["x"]}
    listed = listed[:3]
    assert list(pair(listed, ["x", "y", "z"], "zip").values()) == [["x"], ["y"], ["z"]]
    assert list(pair(listed, ["x", "x"], "product").values()) == [["x"]] * 3
    with refuses(ArgumentError, "expected a sentence for each of 3 videos, got 2 sentences."):
        pair(listed, ["x", "y"], "zip")
    with refuses(ConfigError, "expected pairs to be one of product, zip, got 'all'."):
        pair(listed, ["x"], "all")
    for name in ("talk10.srt", "talk9.srt", "._talk9.srt"):
        (tmp_path / name).touch()
    names = [one.name for one in list_sources([tmp_path], text_tracks=True)]
    assert names == ["talk9.srt", "talk10.srt"]
    with refuses(FileError, f"expected text tracks in {videos}, got none."):
        list_sources([videos], text_tracks=True)


def test_a_sentence_without_a_known_word_stops_it_at_once(pipe, videos):
    with refuses(ArgumentError, "qqq"):
        ask(pipe, videos, sentences=["qqq"])
    with refuses(ArgumentError, "expected the number of videos to be an integer >= 1, got 0."):
        [*answer_videos(pipe, {})]
