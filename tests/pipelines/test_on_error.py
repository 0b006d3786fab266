"""One bad file or query must not lose the answers of a whole list."""

import math

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.pipelines import (
    CHANNELS,
    FPS,
    QUERIES,
    answer_of,
    assert_alike,
    make_features,
    make_frame_encoder,
    make_pipe,
    seeds,
)

from tmapdiff.errors import (
    ArgumentError,
    ConfigError,
    FeatureError,
    FileError,
    ShapeError,
    TmapdiffError,
    VideoError,
)
from tmapdiff.video import VideoFeatures

GOOD, OTHER = make_features(30), make_features(50, seed=1)


def bad_features():
    features = torch.randn(30, CHANNELS)
    features[7, 3] = torch.nan
    return VideoFeatures(features, 1 / FPS, 7.5)


BAD = {
    "no file": ("none.mp4", FileError, "none.mp4"),
    "no video": (b"no video at all", VideoError, ""),
    "empty": (b"", VideoError, ""),
    "no kind of video": (None, ArgumentError, ""),
    "not finite": (bad_features(), FeatureError, "finite features, got NaN or inf in row 7."),
    "another model's": (make_features(30, channels=3), FeatureError,
                        f"expected features of shape (T, {CHANNELS}), T >= 1, got (30, 3)."),
    "another rate": (VideoFeatures(torch.randn(30, CHANNELS), 1 / FPS, 60.0), FeatureError,
                     "expected features that cover the 60 s of the video"),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return make_pipe(frame_encoder=make_frame_encoder())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_video_is_skipped_and_the_reason_stands_in_its_place(pipe, name):
    if name in ("no video", "empty"):
        pytest.importorskip("av")
    pipe.set_progress_bar_config(disable=True)
    bad, kind, text = BAD[name]
    videos = [GOOD, bad, OTHER, bad]
    alone = {
        place: pipe(videos[place], QUERIES[0], generator=seeds(1, place), num_samples=2)
        for place in (0, 2)
    }
    for batch_size in (1, 2, 16):
        options = {"batch_size": batch_size, "num_samples": 2}
        found = pipe(videos, QUERIES[0], on_error="skip", generator=seeds(4), **options)
        assert [type(one) for one in found.errors] == [type(None), kind, type(None), kind]
        assert "\n" not in str(found.errors[1])
        assert text in str(found.errors[1])
        for place, expected in alone.items():
            assert_alike(answer_of(found, place), expected)
            assert found.durations[place] == expected.durations[0]
        assert found.moments[1] == found.moments[3] == []
        assert math.isnan(found.durations[1])
        assert math.isnan(found.clip_seconds[1])
        assert found.maps[1].shape == (0, 0)
    with pytest.raises(kind) as caught:
        pipe(videos, QUERIES[0])
    assert str(caught.value) == str(found.errors[1])


def test_a_bad_query_is_skipped_too(pipe):
    found = pipe(GOOD, ["the door", "?!", "person"], on_error="skip", generator=seeds(3))
    assert [one is None for one in found.errors] == [True, False, True]
    assert isinstance(found.errors[1], ArgumentError)
    assert [bool(one) for one in found.moments] == [True, False, True]
    with refuses(ArgumentError, "expected a sentence with a word, got '?!'."):
        pipe(GOOD, ["the door", "?!", "person"])


@pytest.mark.parametrize("parts", [{}, {"durations": [8.0]}], ids=["whole", "in windows"])
def test_scores_that_are_not_finite_are_raised(parts):
    pipe = make_pipe(**parts)
    with torch.no_grad():
        next(pipe.localizer.parameters()).fill_(torch.nan)
    with refuses(ArgumentError, "These weights are not finite: "):
        pipe([make_features(40)], QUERIES[0], on_error="skip")


@pytest.mark.parametrize("output_type", ["pt", "np"])
def test_numbers_of_what_was_skipped_are_nan(pipe, output_type):
    found = pipe(
        [GOOD, "none.mp4"],
        QUERIES[0],
        on_error="skip",
        output_type=output_type,
        return_steps=True,
        num_inference_steps=2,
    )
    assert found.moments.shape == (2, 5, 4)
    assert not math.isnan(found.moments[0, 0, 0])
    assert bool(np.isnan(np.asarray(found.moments[1])).all())
    assert len(found.steps) == len(found.noisy_steps) == 2
    assert (len(found.steps[0]), len(found.steps[1])) == (2, 0)
    assert found.saliency[1].shape == (0,)
    assert isinstance(found.maps[1], np.ndarray if output_type == "np" else torch.Tensor)


def test_all_may_be_bad(pipe):
    found = pipe(["none.mp4", "neither.mp4"], QUERIES[0], on_error="skip")
    assert found.moments == [[], []]
    assert all(isinstance(one, FileError) for one in found.errors)


def test_a_video_too_long_for_the_memory_is_no_reason_to_lose_the_others(monkeypatch):
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "100000")
    pipe = make_pipe(clip_seconds=0.25)
    found = pipe([GOOD, make_features(3000)], QUERIES[0], on_error="skip")
    assert found.errors[0] is None
    assert isinstance(found.errors[1], TmapdiffError)


def test_there_are_no_errors_unless_they_are_skipped(pipe):
    assert pipe(GOOD, QUERIES[0]).errors is None
    assert pipe(GOOD, QUERIES[0], on_error="skip").errors == [None]
    with refuses(ConfigError, "expected on_error to be one of raise, skip, got 'ignore'."):
        pipe(GOOD, QUERIES[0], on_error="ignore")
    # Errors of the call itself are raised, not skipped.
    with refuses(ArgumentError, "top_n to be an integer >= 1, got 0."):
        pipe(GOOD, QUERIES[0], on_error="skip", top_n=0)


def test_queries_and_generators_that_are_none(pipe):
    for query in (None, 3, [None], ["a", 3]):
        with refuses(ArgumentError, "query to be a sentence or a list of them, got "):
            pipe(GOOD, query)
    for generator in (0, "cpu", [0], [None], 1.5, seeds):
        with refuses(ArgumentError, "expected generator to be a torch.Generator or a list of them"):
            pipe(GOOD, QUERIES[0], generator=generator)
    with refuses(ShapeError, "expected generator to be a list of 1, got 2."):
        pipe(GOOD, QUERIES[0], generator=seeds(2))
