"""Prediction of whether the answer is in the video."""

from dataclasses import replace

import pytest
import torch
from helpers.assertions import refuses
from helpers.training import make_dataset, make_model

from tmapdiff import MomentDataset, SimilarityLocalizer
from tmapdiff.data import AnnotationSet, Prediction, add_negatives, collate_moments
from tmapdiff.data.synthetic import SyntheticDiDeMo
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.evaluation import (
    auroc,
    draw_queries,
    evaluate,
    evaluate_didemo_prior,
    evaluate_oracle,
    evaluate_predictions,
    fit_moment_prior,
    fit_presence,
    presence_metrics,
)
from tmapdiff.maps import IoUMapBuilder, MapGrid
from tmapdiff.maps.saliency import map_presence
from tmapdiff.models.presence import presence_features

PRESENCE = ["AUROC", "Accuracy", "Brier", "ECE", "AURC"]


@pytest.fixture(scope="module")
def plain() -> MomentDataset:
    return make_dataset(3, "test")


@pytest.fixture(scope="module")
def mixed(plain) -> MomentDataset:
    """The queries, and each query again with another video."""
    return other(plain, add_negatives(plain.annotations))


def other(dataset: MomentDataset, annotations: AnnotationSet) -> MomentDataset:
    return MomentDataset(annotations, dataset.store, dataset.vocabulary, num_clips=8)


@pytest.fixture
def model(plain):
    return make_model(plain, baseline=True, dropout=0.0).eval()


def test_auroc_is_the_share_of_pairs_in_order():
    torch.manual_seed(0)
    for values in (3, 1000):
        scores = torch.randint(values, (60,)).double()
        scores[:2] = torch.tensor([torch.inf, -torch.inf])
        positive = torch.rand(60) < 0.3
        won = [
            1.0 if one > two else 0.5 if one == two else 0.0
            for one in scores[positive].tolist()
            for two in scores[~positive].tolist()
        ]
        assert auroc(scores, positive) == pytest.approx(sum(won) / len(won))
    for args, text in (
        ((scores, positive & False), "at least one positive and one negative, got 0 positives"),
        ((scores * torch.nan, positive), "scores that can be ordered, got NaN."),
        ((scores, positive.int()), "bool positive, got torch.int32."),
    ):
        with refuses(ArgumentError, f"auroc: expected {text}"):
            auroc(*args)


def test_metrics_of_presence():
    presence = torch.tensor([0.9, 0.8, 0.5, 0.2], dtype=torch.float64)
    present = torch.tensor([True, False, True, False])
    found = presence_metrics(presence, present)
    assert list(found) == [f"Presence-{name}" for name in PRESENCE]
    assert found["Presence-AUROC"] == pytest.approx(75)
    assert found["Presence-Accuracy"] == pytest.approx(50)
    assert found["Presence-Brier"] == pytest.approx(100 * (0.01 + 0.64 + 0.25 + 0.04) / 4)
    assert found["Presence-AURC"] == pytest.approx(100 * (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_an_expected_map_holds_how_likely_there_is_a_moment():
    grid = MapGrid(16, 8, 2)
    model = SimilarityLocalizer(clip_channels=4, num_clips=16, num_anchors=8, num_scales=2)
    target = model.objective.target
    moments = torch.tensor([[[3.0, 7.0]], [[8.0, 16.0]], [[0.0, 1.0]]])
    maps = target(IoUMapBuilder(grid).packed(moments))
    for share in (1.0, 0.6, 0.1, 0.0):
        found = map_presence(share * maps, grid, target=target)
        assert float((found - share).abs().max()) < 0.02


def test_the_plain_similarity_is_a_mean_of_cosines():
    torch.manual_seed(0)
    grid = {"num_clips": 8, "num_anchors": 8, "num_scales": 1}
    model = SimilarityLocalizer(clip_channels=6, spaces=[4, 2], features_per_clip=3, **grid)
    features, words = torch.randn(2, 24, 6), torch.randn(2, 3, 6)
    features[1, 21:] = words[1, 0]  # the best match, after the end of the video
    inputs, num_clips = (features, words, torch.tensor([3, 1])), torch.tensor([8, 7])
    found = model.localize(*inputs, torch.ones(2), num_clips=num_clips)
    assert found.presence is None  # it was not fitted
    numbers = presence_features(model, *inputs, found.maps, num_clips)
    for row, (clips, count) in enumerate(((8, 3), (7, 1))):
        sentence = words[row, :count].sum(0)
        cosines = [
            sum(
                float(torch.cosine_similarity(one[part], sentence[part], dim=0))
                for part in (slice(0, 4), slice(4, 6))
            )
            / 2
            for one in features[row, : 3 * clips]
        ]
        top = sorted(cosines)[-2:]  # a twentieth of 24 or 21, rounded up
        assert numbers[row].tolist() == pytest.approx(
            [1.0, float(found.maps[row].max()), sum(top) / 2], abs=1e-3
        )


def test_a_model_tells_what_it_was_fitted_to_tell_and_so_does_the_saved_one(
    model, mixed, plain, tmp_path
):
    alone = evaluate(model, plain)
    assert alone.presence is None
    assert fit_presence(model, mixed) is model
    found = evaluate(model, mixed)
    half = len(plain)
    assert found.present.tolist() == [True] * half + [False] * half
    assert float(found.presence.mean()) == pytest.approx(0.5, abs=0.05)
    metrics = presence_metrics(found.presence, found.present)
    assert {name: found.metrics[name] for name in metrics} == metrics
    # Metrics of moments cover only queries with a moment.
    assert {name: found.metrics[name] for name in alone.metrics} == alone.metrics
    assert found.iou[half:].isnan().all()
    assert torch.equal(found.iou[:half], alone.iou)

    # Sets use it as the probability of a moment, unless another is passed.
    batch = collate_moments([mixed[0], mixed[len(mixed) - 1]])
    inputs = batch.features, batch.words, batch.num_words, batch.clip_seconds
    sets = model.localize(*inputs, answer="set")
    assert sets.presence.tolist() == pytest.approx(found.presence[[0, -1]].tolist(), rel=1e-4)
    assert sets.ranked.presence.tolist() == pytest.approx(sets.presence.tolist())
    told = model.localize(*inputs, answer="set", presence=torch.full((2,), 0.25))
    assert told.ranked.presence.tolist() == [0.25, 0.25]

    model.save_pretrained(tmp_path)
    again = evaluate(type(model).from_pretrained(tmp_path), mixed)
    assert torch.equal(again.presence, found.presence)
    with refuses(ConfigError, "MS2DTAN: expected presence_weights to be 3 numbers, as returned"):
        type(model)(**{**model.config, "presence_weights": [1.0]})
    with refuses(ArgumentError, "fit_presence: expected queries with and without a moment, got on"):
        fit_presence(model, plain)


def test_presence_is_fitted_with_the_noise_of_the_seed(plain, mixed):
    model = make_model(plain).eval()
    for one in model.parameters():
        torch.nn.init.normal_(one, std=0.3)
    weights = [fit_presence(model, mixed, seed=seed).config.presence_weights for seed in (0, 0, 1)]
    assert weights[0] == weights[1] != weights[2]


def test_queries_without_a_moment_count_in_no_metric_of_moments(model, plain, mixed):
    grid, queries = model.grid, plain.annotations
    assert evaluate_oracle(grid, mixed) == evaluate_oracle(grid, plain)
    assert torch.equal(fit_moment_prior(grid, mixed), fit_moment_prior(grid, plain))
    draw_queries(model, mixed, [0, len(mixed) - 1])
    torch.manual_seed(0)

    def predict(annotations):
        windows = ((0.0, 5.0, 0.9), (2.0, 9.0, 0.5))
        return [
            Prediction(item.qid, "x", item.video_id, windows, (0.5, 0.6)) for item in annotations
        ]

    rated = AnnotationSet(replace(item, saliency=((4.0,), (0.0,))) for item in queries)
    absent = [
        replace(item, saliency=((0.0,), (0.0,))) for item in mixed.annotations[len(queries) :]
    ]
    both = AnnotationSet([*rated, *absent])
    for protocol in ("rank", "qvhighlights"):
        expected = evaluate_predictions(predict(rated), rated, protocol=protocol)
        assert evaluate_predictions(predict(both), both, protocol=protocol) == expected
        # An empty answer where there is a moment is a miss.
        silent = [replace(one, windows=()) for one in predict(rated)]
        missed = evaluate_predictions(silent, rated, protocol=protocol)
        assert {value for name, value in missed.items() if not name.startswith("HL")} == {0.0}
        with refuses(ArgumentError, "expected at least one query with a"):
            evaluate_predictions(predict(absent), AnnotationSet(absent), protocol=protocol)


def test_didemo_leaves_them_out(plain):
    queries = SyntheticDiDeMo(num_videos=3).annotations
    absent = AnnotationSet(replace(one, qid=f"{one.qid}x", moments=()) for one in queries)
    both = AnnotationSet([*queries, *absent])
    assert evaluate_didemo_prior(both, both) == evaluate_didemo_prior(queries, queries)
    with refuses(ArgumentError, "DiDeMoMetrics: expected"):
        evaluate_didemo_prior(queries, absent)
