"""Videos longer than the training videos are searched in windows."""

import json
import warnings
from itertools import pairwise

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.oracles import interval_iou
from helpers.pipelines import (
    CHANNELS,
    FPS,
    GRID,
    QUERIES,
    WORDS,
    answer_of,
    assert_alike,
    index_with,
    make_features,
    make_localizer,
    make_pictures,
    make_pipe,
    seeds,
)
from helpers.text_encoders import tiny_text_encoder

from tmapdiff import (
    MS2DTAN,
    FrameEncoder,
    IoUMapBuilder,
    MapGrid,
    MomentLocalizer,
    SimilarityLocalizer,
)
from tmapdiff import MomentLocalizationPipeline as Pipeline
from tmapdiff.data import Annotation
from tmapdiff.errors import ArgumentError, CheckpointError
from tmapdiff.maps.overlap import temporal_iou
from tmapdiff.video import VideoFeatures

TRAINED = [20.0, 30.0, 40.0]  # seconds
RANKINGS = ("nms", "expected-hits")


def make_long(seconds, seed=0):
    return make_features(round(seconds * FPS), seed)


@pytest.mark.parametrize(
    ("kind", "ranking"), [(MomentLocalizer, "nms"), (MS2DTAN, "expected-hits")]
)
def test_no_moment_is_longer_than_the_videos_of_training(kind, ranking):
    pipe = make_pipe(make_localizer(kind), durations=TRAINED)
    found = pipe(make_long(900), QUERIES[:2], ranking=ranking, top_n=10)
    (windows, _), cell = found.windows, found.clip_seconds[0]
    for start, end in windows:
        assert end - start == pytest.approx(30, rel=0.01)
    assert (windows[0][0], windows[-1][1]) == (0, 900)
    for (start, end), (after, _) in pairwise(windows):
        assert start < after <= (start + end) / 2 + 1e-6
    for moments in found.moments:
        assert len(moments) == 10
        assert max(one.end - one.start for one in moments) <= 8 * cell + 1e-6
        scores = [one.score for one in moments]
        assert scores == sorted(scores, reverse=True)
        Annotation(0, "v", "q", 900.0, tuple((one.start, one.end) for one in moments))
        if ranking == "nms":
            spans = torch.tensor([[one.start, one.end] for one in moments], dtype=torch.float64)
            overlap = temporal_iou(spans[:, None], spans).fill_diagonal_(0)
            assert float(overlap.max()) <= 0.49 + 1e-6


def see_events(pipe, monkeypatch):
    """Make the model answer each window with the true maps of the event that channel 0 marks."""
    build, grid = IoUMapBuilder(MapGrid(**GRID)), GRID["num_clips"]
    rows = []

    def predict_maps(features, words, num_words, num_clips):
        rows.append(len(features))
        maps = torch.zeros(len(features), build.grid.num_cells)
        for row, marks in enumerate(features[..., 0] > 0.5):
            assert marks.shape == (grid,)
            if marks.any():
                clips = marks.nonzero()[:, 0]
                event = torch.tensor([[float(clips[0]), float(clips[-1]) + 1]])
                maps[row] = build.packed(event, torch.ones(1))[0]
        return maps

    monkeypatch.setattr(pipe.localizer, "predict_maps", predict_maps)
    return rows


@pytest.mark.parametrize("ranking", RANKINGS)
def test_an_event_is_found_wherever_it_lies(monkeypatch, ranking):
    # 240 s in 64 clips of 3.75 s, and an event of two clips, which may cross the ends of windows.
    pipe = make_pipe(make_localizer(MS2DTAN), durations=[30.0])
    see_events(pipe, monkeypatch)
    for clip in [*range(9), *range(60, 63)]:  # windows begin every four clips
        features = torch.zeros(960, CHANNELS)
        features[clip * 15 : (clip + 2) * 15, 0] = 1
        found = pipe(VideoFeatures(features, 0.25, 240.0), "the door", ranking=ranking)
        assert found.clip_seconds == [3.75]
        best = found.moments[0][0]
        assert (best.start, best.end) == (clip * 3.75, (clip + 2) * 3.75), clip


def test_windows_go_through_the_model_in_batches(monkeypatch):
    pipe = make_pipe(make_localizer(MS2DTAN), durations=[30.0])
    rows = see_events(pipe, monkeypatch)
    found = pipe(make_long(240), QUERIES, batch_size=10)
    assert max(rows) == 10
    assert sum(rows) == len(QUERIES) * len(found.windows[0]) == 3 * 15


def test_frames_are_encoded_once():
    encoder = FrameEncoder("test_resnet", pretrained=False)
    pipe = make_pipe(frame_encoder=encoder, durations=[1.0])
    seen = []
    encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    found = pipe(make_pictures(32), QUERIES, frame_rate=8)
    assert found.durations == [4.0] * 3
    assert len(found.windows[0]) > 4
    assert sum(seen) == 4 * FPS


def test_the_map_is_the_mean_of_the_windows():
    """Compare with a loop over cells and windows."""
    model = make_localizer(MS2DTAN)
    pipe, video, grid = make_pipe(model, durations=[10.0]), make_long(40), MapGrid(**GRID)
    found = pipe(video, QUERIES[0])
    clips = video.features.view(32, 5, CHANNELS).mean(1)  # of 1.25 s
    assert found.clip_seconds == [1.25]
    words = pipe.vocabulary.encode(QUERIES[0])[None]
    held = {}
    for start in range(0, 25, 4):
        part = clips[None, start : start + 8]
        maps = grid.unpack(model.predict_maps(part, words, torch.tensor([5])))
        for scale, one in enumerate(maps):
            for row, column in grid.mask(scale).nonzero().tolist():
                cell = (scale, start + row * 2**scale, (column + 1) * 2**scale)
                held.setdefault(cell, []).append(float(one[0, row, column]))
    dense = torch.full((32, 32), torch.nan)
    for (_, start, length), scores in held.items():
        place = (start, length - 1)
        dense[place] = max(float(dense[place].nan_to_num(-9)), sum(scores) / len(scores))
    assert torch.equal(found.maps[0].isnan(), dense.isnan())
    assert_close(found.maps[0].nan_to_num(), dense.nan_to_num())
    assert found.windows == [[(start * 1.25, start * 1.25 + 10) for start in range(0, 25, 4)]]


def test_steps_of_windows():
    pipe, calls = make_pipe(durations=TRAINED), []
    found = pipe(
        make_long(120),
        QUERIES[0],
        num_inference_steps=3,
        num_samples=2,
        return_steps=True,
        generator=seeds(1),
        callback_on_step_end=lambda pipe, step, timestep, maps: calls.append(maps["clean"].shape),
    )
    clips = found.maps[0].shape[0]
    assert clips == 32
    assert found.steps[0].shape == found.noisy_steps[0].shape == (3, clips, clips)
    assert torch.equal(found.steps[0][-1].isnan(), found.maps[0].isnan())
    assert_close(found.steps[0][-1].nan_to_num(), found.maps[0].nan_to_num())
    assert set(calls) == {(len(found.windows[0]), MapGrid(**GRID).num_cells)}


@pytest.mark.parametrize("seconds", [5.0, 30.0, 40.0, 40.5])
def test_a_video_as_long_as_in_training_is_searched_as_a_whole(seconds):
    # 40.5 s also tests that small excess lengths, as files have, do not matter.
    video, trained = make_long(seconds), [40.0] if seconds > 40 else TRAINED
    found = make_pipe(durations=trained)(video, QUERIES, generator=seeds(3))
    assert found.windows is None
    assert_alike(found, make_pipe()(video, QUERIES, generator=seeds(3)))


def test_clip_seconds_still_override():
    video = make_long(300)
    expected = make_pipe(clip_seconds=0.5)(video, QUERIES, generator=seeds(3))
    found = make_pipe(clip_seconds=0.5, durations=TRAINED)(video, QUERIES, generator=seeds(3))
    assert found.windows is None
    assert_alike(found, expected)


def test_a_long_video_is_compared_as_a_whole():
    words = tiny_text_encoder(WORDS, CHANNELS)
    model = SimilarityLocalizer(CHANNELS, num_clips=16, num_anchors=8, num_scales=2)
    pipe = make_pipe(model, vocabulary=None, text_encoder=words, durations=TRAINED)
    long, short = make_long(300), make_long(25, seed=1)
    event = slice(round(200 * FPS), round(212 * FPS))
    long.features[event] = words([QUERIES[0]]).sentences[0]
    found = pipe([long, short], QUERIES[0])
    assert found.windows is None
    best = found.moments[0][0]
    assert interval_iou((best.start, best.end), (200, 212)) > 0.5
    # None of the other 29 intervals of ten seconds is as likely.
    assert all(one.score < best.score / 2 for one in found.moments[0][1:])
    for row, video in enumerate((long, short)):
        assert_alike(answer_of(found, row), pipe(video, QUERIES[0]))


def test_durations_are_saved_and_may_be_replaced(tmp_path):
    make_pipe(durations=[31.0, 20.0, 29.0, 22.0]).save_pretrained(tmp_path)
    read = Pipeline.from_pretrained(tmp_path)
    assert tuple(read.config.durations) == (20.0, 25.5, 31.0)
    read.save_pretrained(tmp_path)
    assert tuple(Pipeline.from_pretrained(tmp_path).config.durations) == (20.0, 25.5, 31.0)
    assert Pipeline.from_pretrained(tmp_path, durations=None).config.durations is None
    read = Pipeline.from_pretrained(tmp_path, clip_seconds=0.5)
    assert read(make_long(300), QUERIES[0]).windows is None


def test_pipelines_saved_without_durations_load_without_a_warning(tmp_path):
    make_pipe().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["durations"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = Pipeline.from_pretrained(tmp_path)
        assert read(make_long(300), QUERIES[0]).windows is None
    for wrong in ("30", [], [30, True], [30, None], [30, "31"], [-1], {"a": 1}, 30):
        with index_with(tmp_path, durations=wrong), refuses(CheckpointError, "expected"):
            Pipeline.from_pretrained(tmp_path)


def test_durations_that_are_none():
    for wrong in ([], [0], [-1.0], ["30"], [None], [float("nan")], "30", 30.0):
        with refuses(ArgumentError, "expected"):
            make_pipe(durations=wrong)
