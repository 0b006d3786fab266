import pickle

import numpy as np
import pytest
import torch
from helpers.assertions import refuses

from tmapdiff.data import ActionTimelineFeatures, CharadesVideo, FeatureStore
from tmapdiff.errors import AnnotationError, ArgumentError, MissingFeatureError, SizeLimitError

VIDEOS = {
    "A": CharadesVideo(10.0, ((0, 1.0, 4.0), (2, 3.0, 9.0), (0, 3.5, 6.0))),
    "B": CharadesVideo(0.1, ()),
    "C": CharadesVideo(7.3, ((1, 0.0, 99.0),)),
}


def exact(**settings):
    settings = {"num_classes": 3, "feature_dim": 8, "drop": 0, "jitter": 0, "noise": 0, **settings}
    return ActionTimelineFeatures(VIDEOS, **settings)


def test_is_a_store():
    store = ActionTimelineFeatures(VIDEOS)
    assert isinstance(store, FeatureStore)
    assert (store.feature_dim, store.seconds_per_feature) == (256, 0.25)
    assert "SIMULATED" in store.description
    assert ("A" in store, "Z" in store) == (True, False)
    assert (store["A"].shape, store["A"].dtype) == ((40, 256), torch.float32)
    assert store["B"].shape == (1, 256)
    assert torch.equal(pickle.loads(pickle.dumps(store))["A"], store["A"])
    with refuses(MissingFeatureError, "expected one of the 3 videos ", " got 'Z'"):
        store["Z"]


@pytest.mark.parametrize("video_id", list(VIDEOS))
def test_without_chance_it_is_the_projected_track(video_id):
    store = exact()
    for sample, feature in enumerate(store[video_id]):
        centre = (sample + 0.5) / 4
        actions = VIDEOS[video_id].actions
        classes = {c for c, start, end in actions if start <= centre < end}
        expected = store._projection[list(classes)].sum(dim=0)
        torch.testing.assert_close(feature, torch.nn.functional.normalize(expected, dim=0))


def test_projection_is_gaussian_and_depends_on_the_seed():
    first = ActionTimelineFeatures({}, seed=0)._projection
    assert first.shape == (157, 256)
    assert abs(first.mean()) < 0.02
    assert abs(first.std() - 1) < 0.02
    assert np.array_equal(first, ActionTimelineFeatures({}, seed=0)._projection)
    assert not np.allclose(first, ActionTimelineFeatures({}, seed=1)._projection)


def test_noise_has_the_norm_asked_for():
    store = exact(noise=3.0, feature_dim=256)
    noise = store["A"] - exact(feature_dim=256)["A"]
    assert noise.norm(dim=1).mean().item() == pytest.approx(3.0, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)


def many(**settings):
    videos = {f"V{i}": CharadesVideo(60.0, ((0, 20.0, 40.0),)) for i in range(500)}
    defaults = {"num_classes": 1, "feature_dim": 2, "noise": 0, "jitter": 0, "drop": 0}
    store = ActionTimelineFeatures(videos, samples_per_second=20, **{**defaults, **settings})
    return [store[video].any(dim=1) for video in videos]


def test_actions_are_dropped_at_the_rate_asked_for():
    present = torch.stack([track.any() for track in many(drop=0.25)])
    # Five standard deviations of 500 draws.
    assert present.float().mean().item() == pytest.approx(0.75, abs=0.1)


def test_both_ends_move_by_themselves():
    tracks = many(jitter=1.5)
    starts = torch.tensor([track.nonzero()[0].item() / 20 for track in tracks])
    ends = torch.tensor([(track.nonzero()[-1].item() + 1) / 20 for track in tracks])
    for times, true in ((starts, 20), (ends, 40)):
        assert times.mean().item() == pytest.approx(true, abs=0.2)
        assert times.std().item() == pytest.approx(1.5, abs=0.15)
    assert abs(torch.corrcoef(torch.stack([starts, ends]))[0, 1].item()) < 0.12


def test_videos_and_seeds_differ():
    twins = {"A": VIDEOS["A"], "B": VIDEOS["A"]}
    store = ActionTimelineFeatures(twins)
    assert not torch.allclose(store["A"], store["B"])
    assert not torch.allclose(store["A"], ActionTimelineFeatures(twins, seed=1)["A"])
    assert torch.equal(store["A"], store["A"])
    # Other videos in the store change nothing.
    assert torch.equal(store["A"], ActionTimelineFeatures(VIDEOS)["A"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_classes": 2}, "expected action classes in 0 to 1, got 2 in 'A'"),
        ({"num_classes": 0}, "expected num_classes to be an integer >= 1"),
        ({"feature_dim": 0}, "expected feature_dim to be an integer >= 1"),
        ({"samples_per_second": 0}, "expected samples_per_second in (0, inf)"),
        ({"drop": 1.1}, "expected drop in [0, 1], got 1.1"),
        ({"jitter": -1}, "expected jitter in [0, inf), got -1"),
        ({"noise": float("nan")}, "expected noise in [0, inf), got nan"),
        ({"seed": -1}, "expected seed to be an integer >= 0"),
    ],
)
def test_settings_are_checked(settings, text):
    with refuses(ArgumentError, text):
        ActionTimelineFeatures(VIDEOS, **settings)


def test_videos_are_checked():
    with refuses(AnnotationError, "expected a duration > 0 seconds, got 0"):
        CharadesVideo(0.0, ())
    store = ActionTimelineFeatures({"A": CharadesVideo(1e12, ())})
    with refuses(SizeLimitError, "video 'A': expected features of at most 536,870,912 bytes"):
        store["A"]


def test_from_charades(charades):
    root = charades([])
    store = ActionTimelineFeatures.from_charades(root, splits=["train"], noise=0.0, seed=3)
    assert (store.noise, store.seed) == (0.0, 3)
    assert set(store.videos) == {"AAAAA", "BBBBB"}


def test_the_official_files(charades_root):
    store = ActionTimelineFeatures.from_charades(charades_root)
    assert len(store.videos) == 7_985 + 1_863
    for video_id in list(store.videos)[::500]:
        features = store[video_id]
        assert features.isfinite().all()
        assert abs(len(features) * 0.25 - store.videos[video_id].duration) <= 0.25
