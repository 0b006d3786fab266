import base64
import json

import numpy as np
import pytest
import torch

from tmapdiff import MomentLocalizationPipeline
from tmapdiff.demo.answers import find_answer
from tmapdiff.video import VideoFeatures

QUERY = "the red circle moves"


@pytest.fixture(scope="module")
def features(pipeline):
    torch.manual_seed(0)
    return VideoFeatures(torch.randn(40, pipeline.frame_encoder.feature_dim), 0.5, 20.0)


def cells(text, size):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(size, size)


def test_answer_is_the_pipelines(pipeline, features):
    answer = json.loads(find_answer(pipeline, features, QUERY, steps=3, samples=4, seed=5))
    found = pipeline(
        features,
        QUERY,
        num_inference_steps=3,
        num_samples=4,
        generator=torch.Generator().manual_seed(5),
    )
    assert answer["moments"] == [vars(one) for one in found.moments[0]]
    assert (answer["query"], answer["duration"], answer["clips"]) == (QUERY, 20.0, 16)
    assert answer["clip_seconds"] == pytest.approx(20 / 16)
    dense = found.maps[0].numpy()
    drawn = cells(answer["map"], 16)
    np.testing.assert_array_equal(drawn == 0, np.isnan(dense))
    low, high = answer["limits"]
    shares = (drawn[drawn > 0] - 1) / 254
    np.testing.assert_allclose(
        low + shares * (high - low), dense[drawn > 0], atol=(high - low) / 254
    )
    assert len(answer["beliefs"]) == len(answer["noise"]) == 3
    for one in (*answer["beliefs"], *answer["noise"]):
        np.testing.assert_array_equal(cells(one, 16) == 0, np.isnan(dense))


def test_samples_are_those_that_are_averaged(pipeline, features):
    answer = json.loads(find_answer(pipeline, features, QUERY, steps=2, samples=3, seed=0))
    generator = torch.Generator().manual_seed(0)
    alone = [
        pipeline(features, QUERY, num_inference_steps=2, num_samples=1, generator=generator)
        for _ in range(3)
    ]
    assert answer["samples"] == [vars(one.moments[0][0]) for one in alone]
    maps = torch.stack([one.maps[0] for one in alone]).nanmean(0)
    merged = pipeline(
        features, QUERY, num_inference_steps=2, num_samples=3,
        generator=torch.Generator().manual_seed(0),
    ).maps[0]  # fmt: skip
    # Merging takes the best of the scales, and does so after averaging.
    assert (merged - maps).nan_to_num().abs().max() < 0.1


@pytest.mark.parametrize(("samples", "clip_seconds"), [(1, None), (4, None), (4, 1.5), (4, 0.7)])
def test_nothing_is_denoised_twice(pipeline, features, monkeypatch, samples, clip_seconds):
    pipe = MomentLocalizationPipeline(
        pipeline.localizer, pipeline.vocabulary, fps=2, clip_seconds=clip_seconds
    )
    calls = []
    decoder, denoise = pipe.localizer.decoder, pipe.localizer.decoder.denoise
    monkeypatch.setattr(decoder, "denoise", lambda *given: calls.append(1) or denoise(*given))
    answer = json.loads(find_answer(pipe, features, QUERY, steps=3, samples=samples, seed=2))
    assert len(calls) == 3 * samples
    generator = torch.Generator().manual_seed(2)
    for one in answer["samples"]:
        alone = pipe(
            features, QUERY, num_inference_steps=3, num_samples=1, generator=generator, top_n=1
        )
        assert one == vars(alone.moments[0][0])


def test_a_video_longer_than_those_of_training(pipeline, features):
    pipe = MomentLocalizationPipeline(
        pipeline.localizer, pipeline.vocabulary, fps=2, durations=[5.0]
    )
    answer = json.loads(find_answer(pipe, features, QUERY, steps=3, samples=4, seed=2))
    generator = torch.Generator().manual_seed(2)
    found = pipe(features, QUERY, num_inference_steps=3, num_samples=4, generator=generator)
    assert answer["windows"] == len(found.windows[0]) == 7
    assert answer["moments"] == [vars(one) for one in found.moments[0]]
    dense = found.maps[0].numpy()
    np.testing.assert_array_equal(cells(answer["map"], 64) == 0, np.isnan(dense))
    assert len(answer["samples"]) == 4
    generator = torch.Generator().manual_seed(2)
    for one in answer["samples"]:
        alone = pipe(
            features, QUERY, num_inference_steps=3, num_samples=1, generator=generator, top_n=1
        )
        assert one == vars(alone.moments[0][0])


def test_one_sample_has_no_spread(pipeline, features):
    answer = json.loads(find_answer(pipeline, features, QUERY, steps=1, samples=1, seed=0))
    assert answer["samples"] == []
    assert {one["spread"] for one in answer["moments"]} == {None}
