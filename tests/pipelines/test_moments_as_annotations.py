"""Answers are valid annotations of their video, in every file format."""

import math

import pytest
import torch
from helpers.pipelines import CHANNELS, QUERIES, make_localizer, make_pipe

from tmapdiff import MS2DTAN, MomentDataset, Vocabulary
from tmapdiff.data import (
    Annotation,
    AnnotationSet,
    Prediction,
    collate_moments,
    read_submission,
    write_submission,
)
from tmapdiff.evaluation import evaluate
from tmapdiff.video import VideoFeatures

# float32 rounds most of them up; rounding to a tenth of a millisecond also does so for the last.
DURATIONS = (30.53, 9.999999, 100 / 3, 7200.1, math.pi, 0.1, 30.530071)
ALL = {"top_n": 800, "ranking": "nms", "nms_threshold": 1.0}


def make_video(duration):
    random = torch.Generator().manual_seed(0)
    return VideoFeatures(torch.randn(40, CHANNELS, generator=random), duration / 40, duration)


def check(duration, moments):
    """Check that moments are valid annotations, and that one ends with the video."""
    Annotation(0, "v", "q", duration, tuple((float(start), float(end)) for start, end in moments))
    assert max(float(end) for _, end in moments) == pytest.approx(duration, abs=1e-3)


@pytest.mark.parametrize("duration", DURATIONS)
@pytest.mark.parametrize("settings", [{}, {"clip_seconds": 0.7}, {"durations": [2.0]}])
def test_of_a_pipeline(duration, settings):
    if settings and duration > 1000:
        pytest.skip("needless work")
    pipe, video = make_pipe(make_localizer(MS2DTAN), **settings), make_video(duration)
    found = pipe(video, QUERIES[0], **ALL)
    check(duration, [(one.start, one.end) for one in found.moments[0]])
    for kind in ("np", "pt"):
        rows = pipe(video, QUERIES[0], output_type=kind, **ALL).moments[0]
        check(duration, [row[:2].tolist() for row in rows if not math.isnan(row[0])])


@pytest.mark.parametrize("duration", DURATIONS)
def test_of_a_localizer_and_an_evaluation(duration, tmp_path):
    vocabulary, model = Vocabulary.from_sentences(QUERIES), make_localizer(MS2DTAN)
    item = Annotation(0, "v", QUERIES[0], duration, ((0.0, duration),))
    dataset = MomentDataset(AnnotationSet([item]), Store(), vocabulary, num_clips=8)
    batch = collate_moments([dataset[0]])
    inputs = (batch.features, batch.words, batch.num_words, batch.clip_seconds)
    exact = torch.tensor([duration], dtype=torch.float64)
    for durations in (batch.durations, exact):
        ranked = model.localize(*inputs, durations=durations, **ALL).ranked
        check(duration, ranked.moments[0][ranked.valid[0]].tolist())
    found = evaluate(model, dataset, **ALL).predictions
    check(duration, [window[:2] for window in found[0].windows])
    write_submission(found, tmp_path / "predictions.jsonl")
    (read,) = read_submission(tmp_path / "predictions.jsonl")
    check(duration, [window[:2] for window in read.windows])


class Store(dict):
    description, feature_dim, seconds_per_feature = "features in memory", CHANNELS, None

    def __getitem__(self, video_id):
        return make_video(1.0).features


@pytest.mark.parametrize(("start", "end"), [(0.0, 30.530071), (29.99998, 30.00001), (0.29, 0.57)])
def test_a_submission_is_rounded_into_the_moment(start, end):
    prediction = Prediction(0, "q", "v", ((start, end, 0.5),))
    ((first, last, _),) = prediction.as_submission()["pred_relevant_windows"]
    assert 0 <= first < last <= end
    assert (first, last) == pytest.approx((start, end), abs=1.01e-4)
    assert (first, last) == (round(first, 4), round(last, 4))
