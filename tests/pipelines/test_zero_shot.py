"""Pipelines without training; random weights, as there is no network."""

import json
import os

import numpy as np
import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.pipelines import index_with, make_localizer, make_pictures, make_pipe, write_video
from helpers.text_encoders import save_two_towers, tiny_text_encoder
from helpers.videos import sampled

from tmapdiff import MomentLocalizationPipeline, TransformersTextEncoder
from tmapdiff.data import encode_text_track, load_text_track, pool_features
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError
from tmapdiff.models import SimilarityLocalizer
from tmapdiff.video import TransformersFrameEncoder

WORDS = ["a", "person", "opens", "the", "door", "walks", "roads", "budget"]
QUERIES = ["a person opens the door", "the person walks"]
TRACK = "".join(
    f"{number}\n00:00:{2 * number:02},000 --> 00:00:{2 * number + 2:02},000\n{text}\n\n"
    for number, text in enumerate(["a door", "the budget", "roads", "roads", "a person walks"] * 4)
)


def expected_of(localizer, rows, duration, sentences):
    """Call the model directly, with each sentence as a single word."""
    count = localizer.grid.num_clips * 4
    clips = pool_features(rows, count, duration=duration)
    return localizer.localize(
        clips.expand(len(sentences), -1, -1),
        sentences[:, None],
        torch.ones(len(sentences), dtype=torch.long),
        torch.full((len(sentences),), duration / localizer.grid.num_clips),
    )


def assert_answers(found, expected, count=2):
    for index in range(count):
        times = torch.tensor([[one.start, one.end] for one in found.moments[index]])
        assert_close(times, expected.ranked.moments[index][: len(times)].float())
        scores = torch.tensor([one.score for one in found.moments[index]])
        assert_close(scores, expected.ranked.scores[index][: len(scores)])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_frames_and_sentences_of_two_towers(kind, tmp_path):
    save_two_towers(tmp_path / "model", WORDS, kind)
    fields = {"num_clips": 8, "num_anchors": 8, "num_scales": 1}
    pipe = MomentLocalizationPipeline.from_two_towers(tmp_path / "model", fps=4, **fields)
    write_video(tmp_path / "video.mkv", make_pictures(64))
    found = pipe(tmp_path / "video.mkv", QUERIES)
    images = [frame.image for frame in sampled(tmp_path / "video.mkv", 4)[0]]
    frames = TransformersFrameEncoder(tmp_path / "model").encode(images)
    sentences = TransformersTextEncoder(tmp_path / "model")(QUERIES).sentences
    assert_answers(found, expected_of(pipe.localizer, frames, 8.0, sentences))

    pipe.save_pretrained(tmp_path / "saved")
    again = MomentLocalizationPipeline.from_pretrained(tmp_path / "saved")
    assert again.config.text_features == "sentence"
    assert type(again.frame_encoder) is TransformersFrameEncoder
    assert again(tmp_path / "video.mkv", QUERIES).moments == found.moments
    (tmp_path / "talk.srt").write_text(TRACK)
    with refuses(ConfigError, "expected features of the video, got a text track"):
        pipe(tmp_path / "talk.srt", QUERIES)


def test_text_tracks_by_a_sentence_encoder(tmp_path):
    tiny_text_encoder(WORDS).save_pretrained(tmp_path / "model")
    (tmp_path / "talk.srt").write_text(TRACK)
    fields = {"num_clips": 8, "num_anchors": 8, "num_scales": 1}
    pipe = MomentLocalizationPipeline.from_text_encoder(tmp_path / "model", **fields)
    assert pipe.takes_text_tracks
    with refuses(ArgumentError, "no words, as sentences are compared as a whole, got words=True."):
        MomentLocalizationPipeline.from_text_encoder(tmp_path / "model", words=True)
    found = pipe(str(tmp_path / "talk.srt"), QUERIES)
    assert found.durations == [40.0, 40.0]
    encoder = TransformersTextEncoder(tmp_path / "model")
    rows = encode_text_track(load_text_track(tmp_path / "talk.srt"), encoder)
    assert_answers(found, expected_of(pipe.localizer, rows, 40.0, encoder(QUERIES).sentences))
    # A changed file is read again.
    first = pipe.encode_video(tmp_path / "talk.srt")
    expected = first.features.clone()
    first.features.zero_()  # a copy of what is cached
    assert torch.equal(pipe.encode_video(tmp_path / "talk.srt").features, expected)
    (tmp_path / "talk.srt").write_text(TRACK[: len(TRACK) // 2])
    assert pipe.encode_video(tmp_path / "talk.srt").duration < 40
    # Even with the size and time of the old one, as after `cp -p`.
    (tmp_path / "talk.srt").write_text(TRACK)
    status = (tmp_path / "talk.srt").stat()
    first = pipe.encode_video(tmp_path / "talk.srt")
    (tmp_path / "talk.srt").write_text(TRACK.replace("00:40,000", "00:39,000"))
    os.utime(tmp_path / "talk.srt", ns=(0, status.st_mtime_ns))
    assert pipe.encode_video(tmp_path / "talk.srt").duration == 39
    pipe.save_pretrained(tmp_path / "saved")
    again = MomentLocalizationPipeline.from_pretrained(tmp_path / "saved")
    (tmp_path / "talk.srt").write_text(TRACK)
    assert again(tmp_path / "talk.srt", QUERIES).moments == found.moments


def test_what_of_a_sentence_is_read():
    text = tiny_text_encoder(WORDS)  # tokens and sentences have the same channels
    features = text(QUERIES)
    similar = {"num_clips": 4, "num_anchors": 4, "num_scales": 1}
    of_text = {"text_channels": 16, "vocabulary_size": None}
    for localizer, chosen, kind in (
        (SimilarityLocalizer(16, **similar), None, "sentence"),
        (SimilarityLocalizer(16, **similar), "tokens", "tokens"),
        (SimilarityLocalizer(16, words=True, **similar), None, "tokens"),
        (make_localizer(encoder=of_text), None, "tokens"),
        (make_localizer(encoder=of_text), "sentence", "sentence"),
    ):
        pipe = MomentLocalizationPipeline(localizer, text_encoder=text, text_features=chosen)
        words = pipe.encode_queries(QUERIES)
        if kind == "sentence":
            assert torch.equal(torch.cat(words), features.sentences)
        else:
            assert [len(one) for one in words] == features.num_tokens.tolist()
            assert torch.equal(words[0], features.tokens[0])


def test_text_features_that_do_not_fit(tmp_path):
    text = tiny_text_encoder(WORDS)
    fields = {"text_channels": 16, "clip_channels": 16, "vocabulary_size": None, "aligned": True}
    with refuses(ConfigError, "text_features 'tokens' or 'sentence', as in training, got none"):
        make_pipe(make_localizer(encoder=fields), vocabulary=None, text_encoder=text)
    aligned = make_pipe(
        make_localizer(encoder=fields), vocabulary=None, text_encoder=text, text_features="sentence"
    )
    assert aligned.encode_queries(QUERIES)[0].shape == (1, 16)
    clip = tiny_text_encoder(WORDS, kind="clip")  # tokens of 16, sentences of 8
    of_tokens = make_localizer(encoder={"text_channels": 16, "vocabulary_size": None})
    with refuses(ConfigError, "a text_encoder with 16 channels, got 8 of sentence."):
        make_pipe(of_tokens, vocabulary=None, text_encoder=clip, text_features="sentence")
    with refuses(ConfigError, "text_features to be one of tokens, sentence, got 'words'."):
        make_pipe(of_tokens, vocabulary=None, text_encoder=clip, text_features="words")
    with refuses(ConfigError, "and nothing else for sentences, got Vocabulary with"):
        make_pipe(text_features="tokens")
    with refuses(ConfigError, "and nothing else for sentences, got none."):
        make_pipe(vocabulary=None)
    make_pipe(of_tokens, vocabulary=None, text_encoder=clip).save_pretrained(tmp_path)
    expected = "text_features to be one of tokens, sentence, got ['x']."
    with index_with(tmp_path, text_features=["x"]), refuses(CheckpointError, expected):
        MomentLocalizationPipeline.from_pretrained(tmp_path)


def test_a_moment_of_a_track_that_means_something(tmp_path):
    # Words with distinct directions, as a sentence encoder gives to topics.
    topics = dict(zip(["door", "budget", "roads", "walks"], np.eye(4), strict=True))

    class Topics:
        sentence_channels = 4

        def __call__(self, sentences):
            rows = [topics[sentence.split()[-1]] for sentence in sentences]
            return type("Found", (), {"sentences": torch.tensor(np.array(rows))})

    said = ["door"] * 5 + ["budget"] * 4 + ["roads"] * 7 + ["walks"] * 4
    lines = [{"start": 3 * n, "duration": 3, "text": one} for n, one in enumerate(said)]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = encode_text_track(load_text_track(tmp_path / "talk.jsonl"), Topics())
    localizer = SimilarityLocalizer(4, 20, 20, 1, features_per_clip=3)
    pipe = MomentLocalizationPipeline(localizer, text_encoder=tiny_text_encoder(WORDS, 4), fps=1)
    video = pipe.encode_video(rows.float())
    pipe.encode_queries = lambda queries: list(Topics()(queries).sentences.float()[:, None])
    found = pipe(video, ["the budget", "the roads"])
    best = [(one[0].start, one[0].end) for one in found.moments]
    assert best == [(15, 27), (27, 48)]
