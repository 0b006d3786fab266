import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracles import looped_pieces
from helpers.text_encoders import save_two_towers, tiny_text_encoder

from tmapdiff import MomentLocalizationPipeline, MomentLocalizer
from tmapdiff.cli.localize import _excerpt
from tmapdiff.data import Cue, open_feature_store
from tmapdiff.pipelines import LocalizedMoment
from tmapdiff.video import VideoFeatures

SENTENCES = ["the number 2 is shown", "the number 3"]


def test_a_video_is_answered_as_by_the_pipeline(passes, corpus):
    video = corpus.videos / "three.mp4"
    options = ["--model", corpus.pipeline, "--device", "cpu", "--samples", 3, "--seed", 5]
    found = passes("localize", video, *SENTENCES, *options, "--top", 2, "--json")
    pipeline = MomentLocalizationPipeline.from_pretrained(corpus.pipeline)
    document = found.document
    assert (document["duration"], document["windows"]) == (pytest.approx(8.0), [])
    for answer, sentence in zip(document["answers"], SENTENCES, strict=True):
        assert answer["sentence"] == sentence
        wanted = pipeline(
            str(video), sentence, num_samples=3, top_n=2, generator=torch.Generator().manual_seed(5)
        )
        moments = [vars(moment) for moment in wanted.moments[0]]
        assert len(moments) == len(answer["moments"])
        for one, other in zip(answer["moments"], moments, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
            assert one["spread"] is not None


def test_a_set_may_be_empty(run, passes, corpus, tmp_path, monkeypatch):
    video, options = corpus.videos / "three.mp4", ["--model", corpus.pipeline, "--answer", "set"]
    draw, emptied = MomentLocalizer.draw_samples, iter([1, 1, 0])

    def draw_some(*given, **sampling):
        found = draw(*given, **sampling)
        return torch.zeros_like(found) if next(emptied) else found

    monkeypatch.setattr(MomentLocalizer, "draw_samples", draw_some)
    printed = passes("localize", video, *SENTENCES, *options).out
    assert printed.count("(in this video with probability 0%)\nnot found in this video") == 2
    out = tmp_path / "answers.jsonl"
    assert "not found" in passes("localize", video, SENTENCES[0], *options, "--out", out).out
    record = json.loads(out.read_text())
    assert (record["moments"], record["presence"]) == ([], pytest.approx(0))
    (found,) = passes("localize", video, SENTENCES[0], *options, "--json").document["answers"]
    pipeline = MomentLocalizationPipeline.from_pretrained(corpus.pipeline)
    monkeypatch.undo()
    seed = torch.Generator().manual_seed(0)
    wanted = pipeline(str(video), SENTENCES[0], answer="set", generator=seed)
    assert found["presence"] == pytest.approx(wanted.presence[0], rel=1e-4)
    starts = [one.start for one in wanted.moments[0]]
    assert [one["start"] for one in found["moments"]] == pytest.approx(starts)
    idle = run("localize", video, "a", *options, "--ranking", "nms")
    assert "it has no effect without --answer ranked" in idle.err


def test_a_video_longer_than_those_of_training_is_searched_in_windows(run, corpus, tmp_path):
    pipeline = MomentLocalizationPipeline.from_pretrained(corpus.pipeline, durations=[2.0])
    pipeline.save_pretrained(tmp_path / "pipeline")
    video, options = corpus.videos / "three.mp4", ["--model", tmp_path / "pipeline"]
    windows = run("localize", video, *SENTENCES, *options, "--json").document["windows"]
    assert [end - start for start, end in windows] == pytest.approx([2.0] * 7)
    assert (windows[0][0], windows[-1][1]) == (0, pytest.approx(8.0))
    text = "searched in 7 windows of 2.0 s, as the video is longer than those of training"
    assert text in run("localize", video, *SENTENCES, *options).out


def test_features_answer_as_their_video(run, corpus, tmp_path):
    store = open_feature_store(corpus.features)
    np.save(tmp_path / "three.npy", store["three"].numpy())
    options = ["--model", corpus.pipeline, "--device", "cpu", "--json"]
    answers = [
        run("localize", *source, *options).document["answers"]
        for source in (
            [corpus.videos / "three.mp4", SENTENCES[0]],
            ["three", SENTENCES[0], "--features", corpus.features],
            [tmp_path / "three.npy", SENTENCES[0]],
            [tmp_path / "three.npy", SENTENCES[0], "--seconds-per-feature", 0.5],
        )
    ]
    assert answers[0] == answers[1] == answers[2] == answers[3]
    slower = ["--seconds-per-feature", 1]
    other = run("localize", tmp_path / "three.npy", SENTENCES[0], *options, *slower)
    assert other.document["duration"] == 16


def test_the_table_has_a_row_per_moment(passes, corpus):
    found = passes("localize", corpus.videos / "three.mp4", *SENTENCES, "--model", corpus.pipeline)
    lines = found.out.splitlines()
    assert [line.strip() for line in lines if "number" in line] == SENTENCES
    features = open_feature_store(corpus.features)["three"]
    pipeline = MomentLocalizationPipeline.from_pretrained(corpus.pipeline)
    seed = torch.Generator().manual_seed(0)
    best = pipeline(VideoFeatures(features, 0.5, 8.0), SENTENCES[0], generator=seed).moments[0][0]
    row = next(line.split() for line in lines if line.split()[:1] == ["1"])
    assert row == ["1", f"{best.start:.2f}", f"{best.end:.2f}", f"{best.score:.3f}", "-"]


@pytest.mark.filterwarnings("default::tmapdiff.errors.UnknownWordsWarning")
def test_unknown_words_are_reported(passes, refused, corpus):
    video, model = corpus.videos / "three.mp4", ["--model", corpus.pipeline, "--json"]
    found = passes("localize", video, "the number 2 ladra", "the number 3", *model)
    assert [one["unknown_words"] for one in found.document["answers"]] == [["ladra"], []]
    (line,) = [line for line in found.err.splitlines() if line.startswith("warning: ")]
    assert line.endswith("does not know these words of the queries: ladra.")
    error = refused("localize", video, "el perro ladra", "the number 3", *model)
    assert "expected queries with a word that the model knows, got 'el perro ladra'." in error


def test_plots(run, passes, corpus, tmp_path):
    video, model = corpus.videos / "three.mp4", ["--model", corpus.pipeline]
    places = ["--map", tmp_path / "map.png", "--strip", tmp_path / "strip.png"]
    found = run("localize", video, SENTENCES[0], *model, *places, "--json")
    assert found.document["files"] == [str(tmp_path / "map.png"), str(tmp_path / "strip.png")]
    passes("localize", video, *SENTENCES, *model, *places[:2])
    for name in ("map", "strip", "map-1", "map-2"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_saliency_of_pieces(run, passes, corpus):
    video, options = corpus.videos / "three.mp4", ["--model", corpus.pipeline, "--device", "cpu"]
    found = passes("localize", video, *SENTENCES, *options, "--saliency", 2, "--json")
    pipeline = MomentLocalizationPipeline.from_pretrained(corpus.pipeline)
    seeds = [torch.Generator().manual_seed(0) for _ in SENTENCES]
    wanted = pipeline(str(video), SENTENCES, generator=seeds)
    for answer, clips in zip(found.document["answers"], wanted.saliency, strict=True):
        expected = looped_pieces(clips.tolist(), wanted.clip_seconds[0], wanted.durations[0], 2)
        assert len(answer["saliency"]) == 4
        assert answer["saliency"] == pytest.approx(expected, rel=1e-4)
    plain = run("localize", video, SENTENCES[0], *options, "--json").document["answers"][0]
    assert "saliency" not in plain
    idle = run("localize", video, SENTENCES[0], *options, "--saliency", 2)
    assert idle.code == 2
    assert "it has no effect without --json." in idle.err


def test_an_id_that_the_features_spell_otherwise_is_found_and_reported(run, passes, corpus):
    options = ["--model", corpus.pipeline, "--features", corpus.features, "--json"]
    wanted = run("localize", "three", SENTENCES[0], *options)
    found = passes("localize", "v_three.avi", SENTENCES[0], *options)
    assert found.document["answers"] == wanted.document["answers"]
    assert "the features spell v_three.avi without 'v_' and without suffix" in found.err
    assert "the features spell" not in wanted.err


def test_a_text_track_by_a_sentence_encoder(passes, refused, run, corpus, tmp_path):
    tiny_text_encoder(["budget", "roads", "dogs"]).save_pretrained(tmp_path / "model")
    track = tmp_path / "talk.vtt"
    cues = (f"00:{2 * n:02}.000 --> 00:{2 * n + 2:02}.000\n{text}\n\n" for n, text in enumerate(
        ["roads", "roads and the budget of the town", "dogs"] * 5
    ))  # fmt: skip
    track.write_text("WEBVTT\n\n" + "".join(cues))
    options = ["--text-encoder", tmp_path / "model", "--top", 2]
    found = passes("localize", track, "the budget", "dogs", *options, "--json").document
    assert (found["duration"], found["model"]) == (30, str(tmp_path / "model"))
    pipe = MomentLocalizationPipeline.from_text_encoder(tmp_path / "model")
    moments = pipe(track, ["the budget", "dogs"], top_n=2).moments
    for answer, expected in zip(found["answers"], moments, strict=True):
        assert [one["start"] for one in answer["moments"]] == [one.start for one in expected]
    assert "roads and the budget" in passes("localize", track, "the budget", *options).out
    text = refused("localize", tmp_path / "talk.mp4", "dogs", *options)
    assert "expected features of the video, got str. For" in text
    text = refused("localize", track, "the 2", "--model", corpus.pipeline)
    assert "expected features of the video, got a text track. For videos, pass" in text
    # An answer a line, beside the tracks: it is none of them.
    many = ["localize", tmp_path, "dogs", *options, "--out", tmp_path / "answers.jsonl"]
    assert passes(*many).out == passes(*many).out
    assert run("localize", track, "dogs", *options, "--strip", "x.png").code == 2


def test_a_video_by_a_model_that_is_not_trained(passes, run, corpus, tmp_path):
    save_two_towers(tmp_path / "model", ["dogs", "run"])
    options = ["--zero-shot", tmp_path / "model", "--json"]
    found = passes("localize", corpus.videos / "three.mp4", "dogs run", *options)
    pipe = MomentLocalizationPipeline.from_two_towers(tmp_path / "model")
    expected = pipe(corpus.videos / "three.mp4", "dogs run").moments[0]
    answer = found.document["answers"][0]["moments"]
    assert [one["start"] for one in answer] == pytest.approx([one.start for one in expected])
    for wrong in ([], [*options, "--model", corpus.pipeline]):
        found = run("localize", corpus.videos / "three.mp4", "dogs run", *wrong)
        assert (found.code, "pass exactly one of --model, --zero-shot an" in found.err) == (2, True)


def test_a_folder_is_answered_video_by_video(run, passes, corpus, tmp_path):
    options = ["--model", corpus.pipeline, "--device", "cpu", "--top", 2]
    out = ["--out", tmp_path / "answers.jsonl"]
    found = passes("localize", corpus.videos, *SENTENCES, *options, *out, "--json")
    lines = [json.loads(line) for line in found.out.splitlines()]
    pairs = [(Path(one["video"]).name, one["sentence"]) for one in lines]
    names = ["one.mp4", "three.mp4", "two.mp4"]
    assert pairs == [(name, sentence) for name in names for sentence in SENTENCES]
    assert (tmp_path / "answers.jsonl").read_text().splitlines() == found.out.splitlines()
    alone = passes("localize", corpus.videos / "two.mp4", *SENTENCES, *options, "--json").document
    assert [one["moments"] for one in alone["answers"]] == [one["moments"] for one in lines[4:]]
    # Again, with one that is no video: the others are answered, and the exit code is 1.
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    several = [corpus.videos / "one.mp4", tmp_path / "bad.mp4", tmp_path / "none.mp4"]
    found = run("localize", *several, *SENTENCES, *options, *out)
    assert (found.code, found.err.count("bad.mp4: "), found.err.count("none.mp4: ")) == (1, 2, 2)
    assert found.out.count("score") == 2
    slash = ["--model", f"{corpus.pipeline}/", *options[2:], *out]  # as shells complete names
    assert run("localize", several[0], *SENTENCES, *slash).out == found.out
    found = passes("localize", *several[:1] * 2, SENTENCES[0], *options, "--pairs", "product")
    assert found.out.count("score") == 1  # one video, named twice
    for wrong in (
        [corpus.videos, "--model", corpus.pipeline],
        [corpus.videos, "x", *options, "--map", "x.png"],
        [several[0], "x", *options, "--pairs", "zip"],
        ["one", "x", *options, *out, "--features", corpus.features],
        [several[0], "one.npy", "x", *options],
        ["one.npy", several[0], "x", *options],
    ):
        assert run("localize", *wrong).code == 2


def test_an_id_is_no_folder_of_its_name(passes, corpus, tmp_path, monkeypatch):
    (tmp_path / "three").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ["--model", corpus.pipeline, "--features", corpus.features, "--json"]
    assert passes("localize", "three", SENTENCES[0], *options).document["duration"] == 8


def test_what_is_said_for_the_most_part_in_a_moment():
    cues = [Cue(0, 6, "before"), Cue(6, 8, "a"), Cue(8, 12, "b " * 40), Cue(12, 100, "long")]
    for start, end, text in (
        (5, 8, "a"),
        (6, 9, "a"),
        (6, 10, "a" + " b" * 27 + " ..."),
        (20, 30, "long"),  # not even half of what is said
        (200, 210, ""),
    ):
        assert _excerpt(LocalizedMoment(start, end, 1.0), cues) == text
    assert _excerpt(LocalizedMoment(0, 1, 1.0), [Cue(0, 1, "語" * 90)]) == "語" * 56 + " ..."
