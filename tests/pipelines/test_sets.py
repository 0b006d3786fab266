import math

import numpy as np
import pytest
import torch
from helpers.pipelines import (
    CHANNELS,
    FPS,
    QUERIES,
    make_features,
    make_localizer,
    make_pipe,
    seeds,
)

from tmapdiff import MS2DTAN, IoUMapBuilder
from tmapdiff.video import VideoFeatures

VIDEO = make_features(32)


def truthful(pipe, monkeypatch, *, generative):
    """Make the model answer with the map of the events that channel 0 marks."""
    grid = pipe.localizer.grid

    def maps_of(features):
        moments = torch.zeros(len(features), 4, 2)
        counts = torch.zeros(len(features), dtype=torch.int64)
        for row, marks in enumerate(features[..., 0] > 0.5):
            edges = torch.cat([torch.zeros(1), marks.float(), torch.zeros(1)]).diff()
            runs = torch.stack([(edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]], dim=1)
            moments[row, : len(runs)], counts[row] = runs, len(runs)
        clips = torch.ones(len(features))
        iou = IoUMapBuilder(grid).packed(moments, clips, counts)
        return pipe.localizer.objective.target(iou)

    if generative:
        monkeypatch.setattr(pipe.localizer.encoder, "encode_video", lambda video, _: [video])
        monkeypatch.setattr(pipe.localizer.encoder, "fuse", lambda maps, *_: maps)

        def draw(features, num_samples, **_):
            return maps_of(features[0])[:, None].expand(-1, num_samples, -1)

        monkeypatch.setattr(pipe.localizer, "draw_samples", draw)
    else:
        monkeypatch.setattr(pipe.localizer, "predict_maps", lambda features, *_: maps_of(features))


def marked(*spans, clips=8):
    features = torch.zeros(clips * 4, CHANNELS)
    for start, end in spans:
        features[start * 4 : end * 4, 0] = 1
    return VideoFeatures(features, 1 / FPS, float(clips))


@pytest.mark.parametrize("generative", [True, False])
def test_the_set_is_what_is_there(monkeypatch, generative):
    pipe = make_pipe(make_localizer() if generative else make_localizer(MS2DTAN))
    truthful(pipe, monkeypatch, generative=generative)
    worlds = [[(0, 2), (4, 7)], [], [(1, 5)]]
    options = {"answer": "set", "num_samples": 3} if generative else {"answer": "set"}
    found = pipe([marked(*one) for one in worlds], "the door", **options)
    spans = [sorted((one.start, one.end) for one in some) for some in found.moments]
    assert spans == worlds
    assert found.presence == pytest.approx([1, 0, 1], abs=0.1)
    table = pipe([marked(*one) for one in worlds], "the door", output_type="np", **options).moments
    assert (~np.isnan(table[..., 0])).sum(axis=1).tolist() == [2, 0, 1]
    assert pipe(marked(), "the door").presence is None


def test_long_videos_and_bad_ones_have_sets_too(monkeypatch):
    pipe = make_pipe(make_localizer(MS2DTAN), durations=[8.0])
    truthful(pipe, monkeypatch, generative=False)
    bad = VideoFeatures(torch.full((32, CHANNELS), torch.nan), 1 / FPS, 8.0)
    videos = [marked((1, 3), (20, 23), clips=32), bad, marked(clips=32)]
    found = pipe(videos, "the door", answer="set", on_error="skip")
    first, *others = found.moments
    assert sorted((one.start, one.end) for one in first) == [(1, 3), (20, 23)]
    assert others == [[], []]
    assert math.isnan(found.presence[1])
    assert found.errors[1] is not None


def test_sets_do_not_depend_on_the_batch():
    pipe = make_pipe()
    options = {"answer": "set", "num_samples": 3}
    together = pipe(VIDEO, QUERIES, generator=seeds(3), **options)
    apart = pipe(VIDEO, QUERIES, generator=seeds(3), batch_size=1, **options)
    assert together.presence == pytest.approx(apart.presence)
    for mine, other in zip(together.moments, apart.moments, strict=True):
        assert [(one.start, one.end) for one in mine] == [(one.start, one.end) for one in other]


@pytest.mark.parametrize("generative", [True, False])
def test_what_the_model_was_fitted_to_tell_decides_whether_a_set_is_empty(generative):
    localizer = make_localizer() if generative else make_localizer(MS2DTAN)
    pipe = make_pipe(localizer, durations=[8.0])
    videos = [VIDEO, make_features(20), make_features(96)]  # the last one is searched in windows
    before = pipe(videos, "the door", answer="set", generator=seeds(3))
    for bias, expected in ((9.0, 1.0), (-9.0, 0.0)):
        localizer.register_to_config(presence_weights=[0.0, 0.0, bias])
        found = pipe(videos, "the door", answer="set", generator=seeds(3))
        assert found.presence[:2] == pytest.approx([expected] * 2, abs=1e-3)
        assert [bool(some) for some in found.moments[:2]] == [expected == 1] * 2
        assert found.windows[2]
        assert found.presence[2] == pytest.approx(before.presence[2], abs=1e-5)
