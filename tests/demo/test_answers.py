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


def ask(pipe, features, **options):
    return json.loads(find_answer(pipe, features, QUERY, **options))


def samples_alone(pipe, features, count, *, steps, seed):
    """Return the pipeline's answers for single samples of the same noise."""
    options = {"num_inference_steps": steps, "num_samples": 1, "top_n": 1}
    generator = torch.Generator().manual_seed(seed)
    return [pipe(features, QUERY, generator=generator, **options) for _ in range(count)]


def merged(pipe, features, *, steps, samples, seed, **options):
    options |= {"num_inference_steps": steps, "num_samples": samples}
    return pipe(features, QUERY, generator=torch.Generator().manual_seed(seed), **options)


def test_answer_is_the_pipelines(pipeline, features):
    answer = ask(pipeline, features, steps=3, samples=4, seed=5)
    found = merged(pipeline, features, steps=3, samples=4, seed=5)
    assert answer["moments"] == [vars(one) for one in found.moments[0]]
    assert (answer["query"], answer["duration"], answer["clips"]) == (QUERY, 20.0, 16)
    assert answer["clip_seconds"] == pytest.approx(20 / 16)
    assert answer["saliency"] == pytest.approx(found.saliency[0].tolist(), rel=1e-3)
    dense = found.maps[0].numpy()
    drawn = cells(answer["map"], 16)
    np.testing.assert_array_equal(drawn == 0, np.isnan(dense))
    low, high = answer["limits"]
    shares = (drawn[drawn > 0] - 1) / 254
    np.testing.assert_allclose(
        low + shares * (high - low), dense[drawn > 0], atol=(high - low) / 254
    )
    assert len(answer["clean"]) == len(answer["noisy"]) == 3
    for one in (*answer["clean"], *answer["noisy"]):
        np.testing.assert_array_equal(cells(one, 16) == 0, np.isnan(dense))


@pytest.mark.parametrize(("samples", "clip_seconds"), [(1, None), (4, None), (4, 0.7)])
def test_nothing_is_denoised_twice(pipeline, features, monkeypatch, samples, clip_seconds):
    pipe = MomentLocalizationPipeline(
        pipeline.localizer, pipeline.vocabulary, fps=2, clip_seconds=clip_seconds
    )
    calls = []
    decoder, forward = pipe.localizer.decoder, pipe.localizer.decoder.forward
    # A forward that was replaced is what sampling calls.
    monkeypatch.setattr(decoder, "forward", lambda *given: calls.append(1) or forward(*given))
    answer = ask(pipe, features, steps=3, samples=samples, seed=2)
    assert len(calls) == 3 * samples
    alone = samples_alone(pipe, features, len(answer["samples"]), steps=3, seed=2)
    assert answer["samples"] == [vars(one.moments[0][0]) for one in alone]


def test_a_video_longer_than_those_of_training(pipeline, features):
    parts = pipeline.localizer, pipeline.vocabulary
    pipe = MomentLocalizationPipeline(*parts, fps=2, durations=[5.0])
    answer = ask(pipe, features, steps=3, samples=4, seed=2)
    found = merged(pipe, features, steps=3, samples=4, seed=2)
    assert answer["windows"] == len(found.windows[0]) == 7
    assert answer["moments"] == [vars(one) for one in found.moments[0]]
    np.testing.assert_array_equal(cells(answer["map"], 64) == 0, np.isnan(found.maps[0].numpy()))
    alone = samples_alone(pipe, features, 4, steps=3, seed=2)
    assert answer["samples"] == [vars(one.moments[0][0]) for one in alone]


def test_a_set_is_the_pipelines_and_may_be_empty(pipeline, features, monkeypatch):
    found = merged(pipeline, features, steps=2, samples=3, seed=1, answer="set")
    answer = ask(pipeline, features, steps=2, samples=3, seed=1, answer="set")
    assert answer["moments"] == [vars(one) for one in found.moments[0]]
    assert answer["presence"] == found.presence[0]
    assert ask(pipeline, features, steps=2, samples=3, seed=1)["presence"] is None
    draw = pipeline.localizer.draw_samples
    monkeypatch.setattr(pipeline.localizer, "draw_samples", lambda *a, **k: 0 * draw(*a, **k))
    answer = ask(pipeline, features, steps=2, samples=3, seed=1, answer="set")
    assert (answer["moments"], answer["presence"]) == ([], 0)


def test_one_sample_has_no_spread(pipeline, features):
    answer = ask(pipeline, features, steps=1, samples=1, seed=0)
    assert answer["samples"] == []
    assert {one["spread"] for one in answer["moments"]} == {None}
