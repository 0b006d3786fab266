import pytest
import torch
from helpers.assertions import refuses
from helpers.oracles import interval_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import LocalizationMetrics, RankedMoments
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.metrics import best_ious

quick = settings(max_examples=40, deadline=None)


def random_moments(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, 2, generator=generator).sort(dim=-1).values


@quick
@given(st.integers(1, 12), st.integers(1, 7), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_metrics_equal_a_plain_loop(queries, returned, most, strict, seed):
    predicted = random_moments(queries, returned, seed=seed)
    truth = random_moments(queries, most, seed=seed + 1000)
    counts = torch.randint(1, most + 1, (queries,), generator=torch.Generator().manual_seed(seed))
    metrics = LocalizationMetrics(ranks=(1, 5), thresholds=(0.3, 0.5), strict=strict)
    metrics.update(predicted, truth, counts)
    found = metrics.compute()

    ious = [
        [
            max(interval_iou(p, t) for t in truth[q, : counts[q]].double().tolist())
            for p in predicted[q].double().tolist()
        ]
        for q in range(queries)
    ]
    for rank in (1, 5):
        for m in (0.3, 0.5):
            hits = [any(iou > m if strict else iou >= m for iou in row[:rank]) for row in ious]
            assert found[f"Rank{rank}@{m:g}"] == pytest.approx(100 * sum(hits) / queries)
    assert found["mIoU"] == pytest.approx(100 * sum(row[0] for row in ious) / queries)


@pytest.mark.parametrize("batches", [1, 3, 5])
def test_batches_add_up(batches):
    predicted, truth = random_moments(10, 5, seed=0), random_moments(10, seed=1)
    whole, parts = LocalizationMetrics(), LocalizationMetrics()
    whole.update(predicted, truth)
    for p, t in zip(predicted.chunk(batches), truth.chunk(batches), strict=True):
        parts.update(p, t)
    assert whole.compute() == parts.compute()


@pytest.mark.parametrize(("strict", "expected"), [(True, 0.0), (False, 100.0)])
@pytest.mark.parametrize(("end", "threshold"), [(5.0, 0.5), (7.0, 0.7)])
def test_iou_at_the_threshold(end, threshold, strict, expected):
    metrics = LocalizationMetrics(ranks=(1,), thresholds=(threshold,), strict=strict)
    metrics.update(torch.tensor([[[0.0, end]]]), torch.tensor([[0.0, 10.0]]))
    assert metrics.compute()[f"Rank1@{threshold}"] == expected


def test_keys_are_the_field_s():
    metrics = LocalizationMetrics()
    metrics.update(random_moments(2, 5, seed=0), random_moments(2, seed=1))
    keys = ["Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU"]
    assert list(metrics.compute()) == keys


def test_missing_moments_are_no_hits():
    moments = torch.tensor([[[0.0, 1.0], [0.0, 10.0]]])
    truth = torch.tensor([[0.0, 10.0]])
    scores = torch.zeros(1, 2)
    for second, expected in ((True, 100.0), (False, 0.0)):
        metrics = LocalizationMetrics()
        metrics.update(RankedMoments(moments, scores, torch.tensor([[True, second]])), truth)
        assert metrics.compute()["Rank5@0.5"] == expected
    metrics = LocalizationMetrics(strict=False, thresholds=(0.0,))
    metrics.update(RankedMoments(moments, scores, torch.tensor([[False, False]])), truth)
    assert metrics.compute() == {"Rank1@0": 0.0, "Rank5@0": 0.0, "mIoU": 0.0}


def test_empty_batches_count_nothing():
    metrics = LocalizationMetrics()
    metrics.update(torch.zeros(0, 5, 2), torch.zeros(0, 2))
    with refuses(ArgumentError, "LocalizationMetrics: expected at least one query, got none."):
        metrics.compute()
    with refuses(ArgumentError, "LocalizationMetrics: expected at least one query, got none."):
        LocalizationMetrics().compute()


def test_bad_arguments_are_refused():
    with refuses(ArgumentError, "LocalizationMetrics: expected ranks to be an integer >= 1, got 0"):
        LocalizationMetrics(ranks=(0,))
    with refuses(ArgumentError, "LocalizationMetrics: expected thresholds in [0, 1], got 50."):
        LocalizationMetrics(thresholds=(50,))
    predicted, truth = torch.zeros(2, 5, 2), torch.zeros(2, 2)
    with refuses(ShapeError, "best_ious: expected predicted of shape (B, n, 2), got (2, 2)."):
        best_ious(truth, truth)
    with refuses(
        ShapeError, "best_ious: expected truth of shape (B, M, 2) with B = 2, got (1, 1, 2)"
    ):
        best_ious(predicted, truth[:1])
    with refuses(ShapeError, "best_ious: expected num_truths of shape (B) with B = 2, got (1,)."):
        best_ious(predicted, truth, torch.tensor([1]))
