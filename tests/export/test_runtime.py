import json
import math
import subprocess
import sys
from functools import cache
from itertools import chain, islice, permutations

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.pipelines import WORDS, make_features

from tmapdiff import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FeatureError,
    MapGrid,
    get_objective,
)
from tmapdiff.data.clips import divide_video
from tmapdiff.export import OnnxLocalizer, export_pipeline
from tmapdiff.export.runtime import _pool, _TorchNormal
from tmapdiff.maps import MultiScaleMapSampler, rank_candidates, rank_candidates_by_expected_hits

from .conftest import KINDS, LENGTH, inputs_of


class WithoutGraphs(OnnxLocalizer):
    """Reads moments off maps, with only a grid."""

    def __init__(self, grid: MapGrid, target: str = "full") -> None:
        self.info = {"target": target, "nms_threshold": 0.5}
        self._set_up_moments(grid.num_clips, grid.num_anchors, grid.num_scales)


@pytest.mark.parametrize("count", [1, 7, 15, 16, 40, 448])
def test_noise_is_that_of_torchs_generator(count):
    for seed in (0, 123456789, 2**40 + 3):
        ours, theirs = _TorchNormal(seed), torch.Generator().manual_seed(seed)
        for _ in range(3):
            expected = torch.randn(1, count, generator=theirs)[0].numpy()
            assert np.abs(ours.draw(count) - expected).max() < 1e-5


@pytest.mark.parametrize("target", ["full", "rescaled"])
def test_moments_are_read_off_maps_as_the_library_does(target):
    grid = MapGrid(16, 8, 2)
    reader, maps = WithoutGraphs(grid, target), torch.rand(1, grid.num_cells)
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(maps, torch.tensor([13]))
    assert candidates.tolist() == reader.moments.tolist()
    own = np.full((1, len(candidates)), -np.inf, np.float32)
    np.maximum.at(own, (slice(None), reader._places), maps.numpy()[:, reader._valid])
    own[:, reader.moments[:, 1] > 13] = -np.inf
    assert np.array_equal(own, scores.numpy())
    expected = rank_candidates(candidates, scores, top_n=20, nms_threshold=0.5)
    found = reader._pick_highest(own[0], 20, False)
    assert [moment for moment, _ in found] == expected.clips[0].tolist()
    for first in (False, True):
        expected = rank_candidates_by_expected_hits(
            candidates,
            scores,
            target=get_objective(f"mse-{target}").target,
            top_n=4,
            highest_first=first,
        )
        found = reader._pick_hits(own[0], 4, first)
        assert [moment for moment, _ in found] == expected.clips[0].tolist()
        gains = [score for _, score in found]
        assert np.allclose(gains, expected.scores[0].numpy(), atol=1e-4)


def test_more_moments_are_asked_for_than_there_are():
    reader = WithoutGraphs(MapGrid(2, 1, 1))
    scores = np.array([0.5, -np.inf], np.float32)
    assert reader._pick_highest(scores, 5, False) == [([0, 1], 0.5)]
    assert len(reader._pick_hits(scores, 5, False)) == 1


@pytest.mark.parametrize(
    ("rows", "clips", "stride", "seconds"),
    [(7, 4, None, None), (30, 8, 0.5, None), (3, 8, 4.0, None), (20, 6, 0.5, 1.7)],
)
def test_features_are_pooled_as_in_training(rows, clips, stride, seconds):
    features = torch.randn(rows, 3)
    duration = 10.0 if stride is None else rows * stride
    options = {"seconds_per_feature": stride, "clip_seconds": seconds}
    expected = divide_video(features, duration=duration, num_clips=clips, **options)
    found = _pool(features.numpy(), len(expected), duration, stride, seconds)
    assert np.allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.process
def test_torch_is_not_imported():
    code = "import sys; from tmapdiff.export import OnnxLocalizer; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.fixture(scope="module")
def exported(pipes, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    @cache
    def export(kind):
        folder = tmp_path_factory.mktemp(kind)
        export_pipeline(pipes[kind], folder, format="onnx", max_words=LENGTH)
        return OnnxLocalizer(folder, threads=1), folder

    return export


def same_moments(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.start, ours.end) == pytest.approx((theirs.start, theirs.end), abs=1e-5)
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_the_pipelines(exported, pipes, kind):
    lists = chain.from_iterable(permutations(WORDS, count) for count in (1, 2, LENGTH))
    queries = [" ".join(words) for words in islice(lists, 50)]
    (onnx, _), pipe = exported(kind), pipes[kind]
    asked = queries
    if pipe.vocabulary is None:
        asked = [one.numpy() for one in pipe.encode_queries(queries)]
    for seed, length in enumerate((20, 29)):
        video = make_features(length, seed, pipe.localizer.encoder.config.clip_channels)
        sources = [torch.Generator().manual_seed(seed) for _ in queries]
        expected = pipe(video, queries, generator=sources, top_n=3)
        found = onnx(
            video.features.numpy(),
            asked,
            duration=video.duration,
            seconds_per_feature=video.seconds_per_feature,
            top_n=3,
            seed=seed,
        )
        for ours, theirs in zip(found, expected.moments, strict=True):
            same_moments(ours, theirs)


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_the_models(exported, pipes, kind):
    onnx, _ = exported(kind)
    given = inputs_of(pipes[kind], 5)
    sampling = {}
    if kind in ("conv", "transformer", "aligned-diffusion"):
        sampling["generator"] = [torch.Generator().manual_seed(3) for _ in range(5)]
    expected = pipes[kind].localizer.predict_maps(*given, **sampling).numpy()
    found = onnx.predict_maps(*(one.numpy() for one in given), seed=3)
    mask = pipes[kind].localizer.grid.packed_mask(num_clips=given[3]).numpy()
    assert np.abs(found - expected)[mask].max() < 1e-4


@pytest.mark.compile
def test_what_does_not_fit_is_refused_in_a_line(exported, tmp_path):
    onnx, folder = exported("ms2dtan")  # with 8 clips of 1 s
    features = make_features(20).features.numpy()
    with refuses(FeatureError, "a video of at most 8 s", "got 9.0"):
        onnx(make_features(36).features.numpy(), ["person"])
    with refuses(FeatureError, "features of shape (T, 96)"):
        onnx(features.T, ["person"])
    with refuses(ArgumentError, "export with more max_words"):
        onnx(features, ["person " * 9])
    with refuses(ArgumentError, "a list of queries"):
        onnx(features, "person")
    for stride in (0, math.inf):
        with refuses(ArgumentError, f"expected seconds_per_feature in (0, inf), got {stride}."):
            onnx(features, ["person"], duration=5.0, seconds_per_feature=stride)
    with refuses(ConfigError, "expected ranking to be"):
        onnx(features, ["person"], ranking="best")
    with refuses(CheckpointError, "OnnxLocalizer: cannot load"):
        OnnxLocalizer(tmp_path)
    assert json.loads((folder / "export.json").read_text())["format"] == "onnx"
