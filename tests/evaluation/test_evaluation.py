from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.oracles import dense_saliency, interval_iou, looped_pieces
from helpers.pictures import drawn_bars
from helpers.training import make_dataset, make_model

from tmapdiff import (
    PRESETS,
    ActionTimelineFeatures,
    IoUMapBuilder,
    MapGrid,
    MomentDataset,
    Vocabulary,
    rank_moments,
    temporal_iou,
)
from tmapdiff.data import (
    Annotation,
    AnnotationSet,
    Prediction,
    SyntheticDiDeMo,
    collate_moments,
    keep_consensus,
    read_submission,
    write_submission,
)
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.evaluation import (
    draw_queries,
    evaluate,
    evaluate_didemo_prior,
    evaluate_oracle,
    evaluate_predictions,
    evaluate_prior,
    evaluate_sets,
    fit_moment_prior,
)
from tmapdiff.models import MS2DTAN, Localization, MomentLocalizer

KEYS = ["Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU"]
GRID = {"num_clips": 8, "num_anchors": 4, "num_scales": 2}


@pytest.fixture(scope="module")
def dataset() -> MomentDataset:
    return make_dataset(4, "test")


@pytest.fixture(scope="module")
def model(dataset) -> MomentLocalizer:
    model = make_model(dataset, dropout=0.0)
    with torch.no_grad():
        for decoder in model.decoder.decoders:
            decoder.head.bias.fill_(0.5)  # far from the clipping of scores
    return model.eval()


def test_metrics_are_those_of_the_predictions(model, dataset):
    found = evaluate(model, dataset, num_inference_steps=2, batch_size=3)
    ious = []
    for prediction, item in zip(found.predictions, dataset.annotations, strict=True):
        assert (prediction.qid, prediction.query) == (item.qid, item.query)
        assert (prediction.video_id, prediction.saliency) == (item.video_id, None)
        scores = [score for _, _, score in prediction.windows]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= s < e <= item.duration * 1.0001 for s, e, _ in prediction.windows)
        ious.append(max(interval_iou(prediction.windows[0], one) for one in item.moments))
    hits = sum(iou > 0.5 for iou in ious)
    assert found.metrics["Rank1@0.5"] == pytest.approx(100 * hits / len(dataset))
    assert found.metrics["mIoU"] == pytest.approx(100 * sum(ious) / len(ious), rel=1e-4)
    assert found.iou.tolist() == pytest.approx(ious, abs=1e-6)
    assert found.confidence.tolist() == [one.windows[0][2] for one in found.predictions]
    assert found.queries_per_second == pytest.approx(len(dataset) / found.seconds)


def test_batch_size_does_not_matter_and_the_seed_does(model, dataset):
    by_size = [evaluate(model, dataset, batch_size=size) for size in (1, 3, 64)]
    windows = [torch.tensor([p.windows for p in found.predictions]) for found in by_size]
    torch.testing.assert_close(windows[0], windows[1])
    torch.testing.assert_close(windows[0], windows[2])
    other = evaluate(model, dataset, seed=1)
    other_windows = torch.tensor([p.windows for p in other.predictions])
    assert not torch.allclose(other_windows, windows[2])
    of_numpy = evaluate(model, dataset, batch_size=np.int64(64), seed=np.int64(1))
    assert of_numpy.predictions == other.predictions
    # Every query has its own noise.
    scores = windows[2][:, 0, 2]
    assert len(scores.unique()) == len(scores)


def twin(kind, model: MomentLocalizer, **changes):
    """Build a model of another class with the configuration of a model."""
    fields = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return kind(**{**fields, **changes})


def test_there_is_no_rank_above_the_number_of_answers(model, dataset):
    found, whole = (evaluate(model, dataset, top_n=n).metrics for n in (4, None))
    assert found == {name: one for name, one in whole.items() if not name.startswith("Rank5")}


def test_model_keeps_its_mode_and_progress_is_reported(model, dataset):
    seen = []
    model.train()
    evaluate(model, dataset, batch_size=5, num_inference_steps=1, on_batch=seen.append)
    assert model.training
    assert sum(seen) == len(dataset)
    model.eval()


def test_arguments_out_of_range_are_refused(model, dataset):
    for name in ("batch_size", "seed"):
        with refuses(ArgumentError, f"evaluate: expected {name} to be an integer >= "):
            evaluate(model, dataset, **{name: -1})
    with refuses(ArgumentError, "expected the number of positions to be an integer"):
        draw_queries(model, dataset, [])


def answers(*windows, qid=0) -> Prediction:
    return Prediction(qid, "a query", "v", tuple((*window, 0.5) for window in windows))


def test_metrics_of_predictions_by_hand():
    item = Annotation(0, "v", "a query", 100.0, ((0.0, 10.0),))
    several = replace(item, qid="b", moments=((0.0, 10.0), (50.0, 60.0)))
    annotations = AnnotationSet([item, several])
    predictions = [
        answers((50.0, 55.0), (0.0, 1.0), qid="b"),  # IoU 1/2 with its second moment
        answers((20.0, 30.0), (0.0, 8.0), (0.0, 10.0), qid=0),  # 0, 4/5, 1
    ]
    fields = {"ranks": (1, 2), "thresholds": (0.5, 0.7)}
    found = evaluate_predictions(predictions, annotations, **fields)
    assert found == {
        "Rank1@0.5": 0, "Rank1@0.7": 0, "Rank2@0.5": 50, "Rank2@0.7": 50, "mIoU": 25,
    }  # fmt: skip
    found = evaluate_predictions(predictions, annotations, **fields, strict=False)
    assert (found["Rank1@0.5"], found["Rank2@0.5"]) == (50, 100)


def test_predictions_of_other_queries():
    item = Annotation(0, "v", "a query", 10.0, ((0.0, 10.0),))
    annotations = AnnotationSet([item, replace(item, qid=1)])
    for qids, text in (
        ([0], "expected a prediction for each query, got 1 queries without one, such as qid 1."),
        ([0, 1, 2], "predictions for annotated queries only, got 1 queries not annotated"),
        ([0, 1, "1"], "such as qid '1'."),
        ([0, 1, 1], "expected one prediction per query, got 3 for 2 queries."),
    ):
        with refuses(ArgumentError, text):
            evaluate_predictions([answers((0.0, 1.0), qid=qid) for qid in qids], annotations)
    with refuses(ArgumentError, "expected queries to be an integer >= 1, got 0."):
        evaluate_predictions([], annotations[:0])
    # Of queries with the same ids: their positions in another file.
    given = [answers((0.0, 1.0), qid=0), replace(answers((0.0, 1.0), qid=1), video_id="w")]
    with refuses(ArgumentError, "expected a prediction in video 'v' for qid 1, got one in 'w'."):
        evaluate_predictions(given, annotations)
    given = [replace(one, video_id="v.avi") for one in given]  # as features may spell it
    evaluate_predictions(given, annotations)


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_prior_is_the_share_of_moments_that_each_cell_hits(dataset, threshold):
    grid = MapGrid(**GRID)
    prior = fit_moment_prior(grid, dataset, threshold=threshold)
    cells, mask = grid.packed_moments(), grid.packed_mask()
    for cell in range(grid.num_cells):
        hits = 0
        for item in dataset.annotations:
            seconds = cells[cell].double() * (item.duration / grid.num_clips)
            truth = torch.tensor(item.moments[0]).double()
            hits += bool(temporal_iou(seconds, truth) > threshold)
        expected = hits / len(dataset) if mask[cell] else 0
        assert prior[cell].item() == pytest.approx(expected, abs=1e-6)


def test_prior_is_the_best_constant_answer_on_its_own_data(dataset):
    grid = MapGrid(**GRID)
    prior = fit_moment_prior(grid, dataset)
    best = evaluate_prior(grid, prior, dataset)["Rank1@0.5"]
    assert best == pytest.approx(100 * prior.max().item(), abs=1e-3)
    constant = torch.zeros_like(prior)
    constant[prior.argmin()] = 1
    assert evaluate_prior(grid, constant, dataset)["Rank1@0.5"] <= best


def test_drawing_shows_each_query_beside_its_truth(model, dataset):
    figure = draw_queries(model, dataset, [0, 2], num_inference_steps=1)
    assert len(figure.subfigs) == 2
    for part, position in zip(figure.subfigs, (0, 2), strict=True):
        assert dataset.annotations[position].query in part.get_suptitle()
        assert [ax.get_title() for ax in part.axes[:2]] == ["prediction", "truth"]
        (panel,) = [ax for ax in part.axes if ax.get_label() == "moments"]
        true_bars, *found_bars = drawn_bars(panel)
        sample = dataset[position]
        np.testing.assert_allclose(true_bars, sample.annotation.moments, rtol=1e-5)
        predicted = evaluate(model, dataset, num_inference_steps=1).predictions[position]
        windows = [[window[:2]] for window in predicted.windows]
        np.testing.assert_allclose(found_bars, windows, rtol=1e-5)
        labels = [text.get_text() for text in panel.get_yticklabels()[1:-1]]
        scores = [window[2] for window in predicted.windows]
        assert labels == [f"{rank}  ({score:.2f})" for rank, score in enumerate(scores, start=1)]


def test_metrics_of_sets_are_those_of_their_predictions(model, dataset):
    options = {"num_inference_steps": 1, "num_samples": 2, "answer": "set"}
    found = evaluate(model, dataset, **options)
    assert {one: found.metrics[one] for one in KEYS} == pytest.approx(
        evaluate_predictions(found.predictions, dataset.annotations)
    )
    sets = evaluate_sets(found.predictions, dataset.annotations)
    assert found.metrics == pytest.approx({**{one: found.metrics[one] for one in KEYS}, **sets})
    assert bool(found.confidence.isfinite().all())
    exact = [replace(p, windows=tuple((*one, 1.0) for one in item.moments))
             for p, item in zip(found.predictions, dataset.annotations, strict=True)]  # fmt: skip
    best = evaluate_sets(exact[::-1], dataset.annotations)
    assert best == {"Set-F1@0.5": 100, "Set-F1@0.7": 100, "Set-count-error": 0, "Set-exact": 100}
    none = [replace(one, windows=()) for one in exact]
    assert evaluate_sets(none, dataset.annotations)["Set-F1@0.5"] == 0
    with refuses(ArgumentError, "a prediction for each query"):
        evaluate_sets(exact[1:], dataset.annotations)


# Other models, long videos, DiDeMo


class Truth(MomentLocalizer):
    """Answers the queries of `dataset`, in its order, with the true maps."""

    dataset: MomentDataset
    position = 0

    def predict_maps(self, features, words, num_words, num_clips=None, **_):
        grid = self.grid_of(features, num_clips)
        maps = []
        for _ in range(len(features)):
            sample = self.dataset[self.position]
            moments = torch.tensor([sample.annotation.moments])
            build = IoUMapBuilder(grid)
            maps.append(build.packed(moments, torch.tensor([sample.clip_seconds])))
            self.position += 1
        return torch.cat(maps)


def long_videos(dataset, whole_videos: bool = True) -> MomentDataset:
    parts = dataset.annotations, dataset.store, dataset.vocabulary
    return MomentDataset(*parts, 8, clip_seconds=1.0, whole_videos=whole_videos, clip_multiple=2)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_whole_videos_are_searched_to_their_end(model, dataset, batch_size):
    videos = long_videos(dataset)
    assert {sample.num_clips > 16 for sample in videos} == {True}
    truth = twin(Truth, model)
    truth.dataset = videos
    found = evaluate(truth, videos, batch_size=batch_size)
    # Moments longer than the grid's longest of 8 clips cannot be hit.
    short = [item for item in dataset.annotations if item.moments[0][1] - item.moments[0][0] < 8]
    assert 100 >= found.metrics["Rank1@0.5"] >= 100 * len(short) / len(dataset) > 60
    for prediction, item in zip(found.predictions, dataset.annotations, strict=True):
        assert all(0 <= s < e <= item.duration + 1e-4 for s, e, _ in prediction.windows)


@pytest.mark.parametrize("kind", ["diffusion", "deterministic", "ms2dtan"])
def test_scores_of_whole_videos_do_not_depend_on_the_batch(model, dataset, kind):
    videos = long_videos(dataset)
    if kind == "ms2dtan":
        model = MS2DTAN(encoder_config=model.config.encoder_config, kernel_sizes=[3, 3]).eval()
    elif kind == "deterministic":
        model = twin(MomentLocalizer, model, deterministic=True).eval()
    for eta in (0.0, 1.0) if model.is_generative else (0.0,):
        together, alone = (evaluate(model, videos, batch_size=size, eta=eta) for size in (64, 1))
        for one, other in zip(together.predictions, alone.predictions, strict=True):
            scores = [row[2] for row in one.windows]
            assert scores == pytest.approx([row[2] for row in other.windows], abs=1e-4)


def test_windows_train_and_draw(model, dataset):
    batch = collate_moments([long_videos(dataset, False)[index] for index in range(4)])
    assert batch.features.shape == (4, 8, 16)
    annotated = batch.moments, batch.clip_seconds, batch.num_moments, batch.num_clips
    loss = model.loss(batch.features, batch.words, batch.num_words, *annotated)
    assert bool(loss.isfinite())
    assert draw_queries(model, long_videos(dataset), [0, 1]).subfigs


def test_regressors_take_one_step(model, dataset):
    plain = twin(MomentLocalizer, model, deterministic=True)
    first = evaluate(plain, dataset, num_inference_steps=1)
    assert evaluate(plain, dataset, seed=5).predictions == first.predictions
    text = "evaluate: expected one pass for a MomentLocalizer, which is not generative, got"
    for name, value in (("num_inference_steps", 2), ("num_samples", 3), ("eta", 0.5)):
        with refuses(ArgumentError, f"{text} {name} = {value}."):
            evaluate(plain, dataset, **{name: value})


def test_samples_and_ranking_are_passed_on(model, dataset):
    one = evaluate(model, dataset, num_samples=1, num_inference_steps=1)
    more = evaluate(model, dataset, num_samples=3, num_inference_steps=1)
    assert not torch.equal(one.confidence, more.confidence)
    found = [one.predictions]
    by_hits = {"ranking": "expected-hits"}
    flat, high = {**by_hits, "temperature": 9.0}, {**by_hits, "hit_thresholds": (0.9,)}
    for options in (by_hits, flat, high, {"nms_threshold": 0.2}):
        other = evaluate(model, dataset, num_inference_steps=1, **options)
        assert other.predictions not in found
        found.append(other.predictions)


@pytest.mark.parametrize("whole_videos", [False, True])
def test_saliency_is_read_off_the_maps(model, dataset, whole_videos):
    data = long_videos(dataset) if whole_videos else dataset
    plain = twin(MomentLocalizer, model, deterministic=True).eval()
    found = evaluate(plain, data, batch_size=7, protocol="qvhighlights")
    for prediction, sample in zip(found.predictions, data, strict=True):
        batch = collate_moments([sample])
        inputs = batch.features, batch.words, batch.num_words, batch.clip_seconds
        one = plain.localize(*inputs, num_clips=batch.num_clips)
        count = sample.num_clips or len(one.dense[0])
        dense = one.dense.where(one.mask, torch.nan)[0, :count, :count]
        clips, seconds = dense_saliency(dense, plain.objective.target), float(batch.clip_seconds)
        expected = looped_pieces(clips, seconds, float(batch.durations), 2)
        assert prediction.saliency == pytest.approx(expected, abs=1e-5)
        assert len(prediction.saliency) == int(sample.annotation.duration / 2)


def test_highlights_of_true_maps_are_in_the_true_moments(model, dataset, tmp_path):
    truth = twin(Truth, model)
    truth.dataset = dataset
    found = evaluate(truth, dataset, protocol="qvhighlights")
    rated = []
    for item in dataset.annotations:
        middles = [2 * clip + 1 for clip in range(int(item.duration / 2))]
        inside = [any(start <= one < end for start, end in item.moments) for one in middles]
        assert any(inside)
        rated.append(replace(item, saliency=tuple((4.0 * one,) for one in inside)))
    annotations = AnnotationSet(rated)
    metrics = evaluate_predictions(found.predictions, annotations, protocol="qvhighlights")
    write_submission(found.predictions, tmp_path / "answers.jsonl")
    read = read_submission(tmp_path / "answers.jsonl")
    again = evaluate_predictions(read, annotations, protocol="qvhighlights")
    assert again == pytest.approx(metrics, abs=1e-9)
    # The grid's clips are longer than 2 s, and end elsewhere.
    assert metrics["HL-min-VeryGood-Hit1"] > 75
    assert metrics["HL-min-VeryGood-mAP"] > 75


@pytest.mark.parametrize("windows", [False, True])
def test_the_oracle_is_the_bound_of_the_grid(dataset, windows):
    grid, data = MapGrid(**GRID), long_videos(dataset) if windows else dataset
    found = evaluate_oracle(grid, data)
    best = []
    for sample in data:
        size = grid.resized(len(sample.features))
        inside = size.packed_mask()
        if sample.num_clips is not None:
            inside = size.packed_mask(num_clips=torch.tensor([sample.num_clips]))[0]
        cells = size.packed_moments()[inside] * sample.clip_seconds
        cells = cells.clamp(max=sample.annotation.duration)
        truth = torch.tensor(sample.annotation.moments[0])
        best.append(float(temporal_iou(cells, truth).max()))
    assert found["mIoU"] == pytest.approx(100 * sum(best) / len(best), abs=0.5)
    share = 100 * sum(iou > 0.7 for iou in best) / len(best)
    assert found["Rank1@0.7"] == pytest.approx(share, abs=1e-3)


def test_a_prior_knows_no_longer_videos(dataset):
    grid = MapGrid(**GRID)
    prior = fit_moment_prior(grid, long_videos(dataset, False))
    with refuses(ShapeError, "expected videos of at most 8 clips", "only defined for videos of"):
        evaluate_prior(grid, prior, long_videos(dataset))
    with refuses(ShapeError, "fit_moment_prior: expected videos of at most 8 clips"):
        fit_moment_prior(grid, long_videos(dataset))


@pytest.mark.parametrize("clips", [4, 16])
def test_a_grid_of_other_clips_than_those_of_the_videos_is_refused(dataset, clips):
    grid = MapGrid(clips, 2, 1)
    prior = torch.rand(grid.num_cells)
    with refuses(ShapeError, f"fit_moment_prior: expected videos of {clips} clips, got 8"):
        fit_moment_prior(grid, dataset)
    with refuses(ShapeError, f"evaluate_prior: expected videos of {clips} clips, got 8"):
        evaluate_prior(grid, prior, dataset)
    with refuses(ShapeError, f"evaluate_oracle: expected videos of {clips} clips, got 8"):
        evaluate_oracle(grid, dataset)


def test_a_prior_does_not_depend_on_the_features_of_a_clip(dataset):
    grid, found = MapGrid(**GRID), []
    for each in (1, 2):
        clips = {"clip_seconds": 8.0, "whole_videos": True, "features_per_clip": each}
        few = MomentDataset(dataset.annotations, dataset.store, dataset.vocabulary, 8, **clips)
        prior = fit_moment_prior(grid, few)
        found.append((evaluate_prior(grid, prior, few), evaluate_oracle(grid, few)))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def didemo() -> MomentDataset:
    data = SyntheticDiDeMo(num_videos=12, split="test")
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes, feature_dim=16)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.annotations)
    return MomentDataset(data.annotations, store, vocabulary, 6, clip_seconds=5.0)


def test_made_up_didemo_is_in_its_form(didemo):
    counts = {len(item.moments) for item in didemo.annotations}
    assert counts == {4, 7}
    assert {item.duration for item in didemo.annotations} == {25.0, 30.0}
    for item in didemo.annotations:
        for start, end in item.moments:
            assert start % 5 == end % 5 == 0
            assert 0 <= start < end <= item.duration
    assert any(len(set(item.moments)) > 1 for item in didemo.annotations)
    assert {sample.num_clips for sample in didemo} == {5, 6}


def didemo_model(didemo: MomentDataset) -> MomentLocalizer:
    torch.manual_seed(0)
    grid = {"num_clips": 6, "num_anchors": 6, "num_scales": 1}
    preset = replace(PRESETS["nano"], grid=grid)
    return preset.build(vocabulary_size=len(didemo.vocabulary), clip_channels=16).eval()


def test_didemo_with_the_consensus_as_answer(didemo):
    class Consensus(MomentLocalizer):
        position = 0

        def localize(self, features, words, num_words, clip_seconds, *, num_clips, **_):
            items = didemo.annotations[self.position : self.position + len(features)]
            self.position += len(features)
            agreed = torch.tensor([one.moments for one in keep_consensus(items)])
            mask = self.grid.dense_mask(num_clips=num_clips)
            # With one scale and all durations, packed maps are dense maps.
            dense = temporal_iou(5.0 * self.grid.packed_moments(), agreed).view(-1, 6, 6)
            dense = dense.masked_fill(~mask, -torch.inf)
            ranked = rank_moments(dense, mask, clip_seconds)
            target = self.objective.target
            return Localization(ranked, self.grid, dense.flatten(1), num_clips, target=target)

    model = twin(Consensus, didemo_model(didemo))
    found = evaluate(model, didemo, batch_size=5, protocol="didemo")
    assert found.metrics["Rank1@0.7"] == 100
    agreed = [max(Counter(item.moments).values()) >= 3 for item in didemo.annotations]
    assert found.metrics["Rank@1"] == pytest.approx(100 * sum(agreed) / len(agreed))
    assert found.metrics["Rank@5"] > 80
    assert found.metrics["mIoU"] > 80


def test_didemo_needs_clips_of_a_segment(didemo, dataset):
    model = didemo_model(didemo)
    found = evaluate(model, didemo, protocol="didemo").metrics
    assert list(found) == [*KEYS, "Rank@1", "Rank@5"]
    other = MomentDataset(dataset.annotations, dataset.store, didemo.vocabulary, 6)
    with refuses(ArgumentError, "evaluate: expected clips of 5 s, DiDeMo's segments, got"):
        evaluate(model, other, protocol="didemo")


def test_the_didemo_prior_is_the_most_frequent_answer(didemo):
    items = didemo.annotations
    marked = Counter(moment for item in items for moment in item.moments)
    first = max(marked, key=lambda moment: (marked[moment], moment[1] <= 25))
    hits = [Counter(item.moments)[first] >= 3 for item in items]
    found = evaluate_didemo_prior(items, items)
    assert found["Rank@1"] == pytest.approx(100 * sum(hits) / len(hits))


def test_windows_and_queries_drawn_anew_cannot_be_evaluated(model, dataset):
    prior = torch.zeros(model.grid.num_cells)
    windows, drawn = long_videos(dataset, whole_videos=False), dataset.with_negatives(0.5)
    of_windows = "evaluate: expected whole videos, got windows of them. Pass whole_videos=True to"
    for data, text in (
        (windows, of_windows),
        (drawn, "expected fixed queries, got negatives = 0.5"),
    ):
        for attempt in (
            partial(evaluate, model, data),
            partial(evaluate_oracle, model.grid, data),
            partial(evaluate_prior, model.grid, prior, data),
            partial(draw_queries, model, data, [0]),
        ):
            with refuses(ArgumentError, text):
                attempt()
    with refuses(ArgumentError, "fit_moment_prior: expected fixed queries"):
        fit_moment_prior(model.grid, drawn)


def test_the_didemo_prior_answers_inside_the_video():
    def item(qid, duration, *moments):
        return Annotation(qid, "v", "a dog", duration, moments)

    late, early = (25.0, 30.0), (0.0, 5.0)
    train = AnnotationSet([item(0, 30.0, late, late, early)])
    # The most frequent answer lies after the end of a video of five segments.
    test = AnnotationSet([item(0, 25.0, early, early, early)])
    assert evaluate_didemo_prior(train, test)["Rank@1"] == 100


def test_rank_of_didemo_is_of_the_consensus(didemo):
    """An answer that matches only one annotator is no hit."""
    marked = ((25.0, 30.0), (0.0, 5.0), (0.0, 5.0), (0.0, 5.0))
    item = Annotation(0, didemo.annotations[0].video_id, "a door", 30.0, marked)
    data = MomentDataset(
        AnnotationSet([item]), didemo.store, didemo.vocabulary, 6, clip_seconds=5.0
    )

    class Lone(MomentLocalizer):
        def predict_maps(self, features, words, num_words, num_clips=None, **_):
            maps = torch.zeros(1, self.grid.num_cells)
            maps[0, 5 * 6] = 1.0  # the last segment
            return maps

    lone = twin(Lone, didemo_model(didemo))
    assert evaluate(lone, data, protocol="didemo").metrics["Rank1@0.5"] == 0
