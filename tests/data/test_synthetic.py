from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from helpers.assertions import refuses

from tmapdiff.data import SyntheticActivities, SyntheticVideos, tokenize
from tmapdiff.errors import ArgumentError, ConfigError


@pytest.fixture(scope="module")
def large():
    return SyntheticActivities(600)


def test_videos_are_as_described(large):
    assert len(large.videos) == 600
    overlapping = 0
    for video in large.videos.values():
        assert 20 <= video.duration <= 40
        assert 3 <= len(video.actions) <= 6
        classes = [action[0] for action in video.actions]
        assert len(set(classes)) == len(classes)
        assert all(0 <= action_class < large.num_classes for action_class in classes)
        for _, start, end in video.actions:
            assert 0 <= start < end <= video.duration
            assert 1.98 <= end - start <= 15.02
        moments = sorted(action[1:] for action in video.actions)
        overlapping += any(a[1] > b[0] for a, b in pairwise(moments))
    assert 60 < overlapping < 590
    used = {action[0] for video in large.videos.values() for action in video.actions}
    assert used == set(range(large.num_classes))


def test_each_sentence_means_one_activity(large):
    """The wording tells the activity, and the activity has one moment in its video."""
    activity_of, wordings_of = defaultdict(set), defaultdict(set)
    for item in large.annotations:
        (moment,) = item.moments
        (activity,) = [a[0] for a in large.videos[item.video_id].actions if a[1:] == moment]
        activity_of[item.query].add(activity)
        wordings_of[activity].add(item.query)
        assert tokenize(item.query)
    assert all(len(activities) == 1 for activities in activity_of.values())
    assert all(len(wordings) > 5 for wordings in wordings_of.values())
    assert len(activity_of) == sum(len(wordings) for wordings in wordings_of.values())


@pytest.mark.parametrize(("kind", "least"), [(SyntheticActivities, 0.05), (SyntheticVideos, 0.03)])
def test_no_single_answer_is_often_right(kind, least):
    large = kind(400)
    moments = np.array([np.array(item.moments[0]) / item.duration for item in large.annotations])
    best = 0.0
    for start in np.linspace(0, 1, 31):
        for end in np.linspace(0, 1, 31):
            if start < end:
                both = np.minimum(moments[:, 1], end) - np.maximum(moments[:, 0], start)
                either = np.maximum(moments[:, 1], end) - np.minimum(moments[:, 0], start)
                best = max(best, float((both / either > 0.5).mean()))
    assert least < best < 0.20


@pytest.mark.parametrize("kind", [SyntheticActivities, SyntheticVideos])
def test_train_and_test_differ_and_seeds_too(kind):
    train, test, other = kind(5, split="train"), kind(5, split="test"), kind(5, seed=1)
    for another in (test, other):
        assert not set(train.videos) & set(another.videos)
        assert list(train.videos.values()) != list(another.videos.values())
    # A smaller set is the beginning of a larger one.
    longer = kind(6).annotations
    assert list(longer)[: len(train.annotations)] == list(train.annotations)
    assert repr(train).startswith(f"{kind.__name__}(train, seed 0: AnnotationSet(")
    name = kind.__name__.removeprefix("Synthetic").lower()
    assert f"synthetic {name} (train, seed 0)" in str(train.annotations.report)

    with refuses(ArgumentError, "expected num_videos to be an integer >= 1, got 0"):
        kind(0)
    with refuses(ArgumentError, "expected seed to be an integer >= 0"):
        kind(1, seed=-1)
    with refuses(ConfigError, "expected split to be one of train, test, got 'val'"):
        kind(1, split="val")
