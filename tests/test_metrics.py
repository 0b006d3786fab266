import copy
from collections import Counter
from functools import cache
from itertools import permutations

import pytest
import torch
from helpers.assertions import refuses
from helpers.host_sync import no_host_sync, on_a_device
from helpers.oracles import interval_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import CalibrationMetrics, LocalizationMetrics, RankedMoments
from tmapdiff.data import load_didemo
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.evaluation import evaluate_didemo_prior
from tmapdiff.metrics import DiDeMoMetrics, SetMetrics, best_ious, consensus_moments

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
    assert list(found) == ["Rank1@0.3", "Rank1@0.5", "Rank5@0.3", "Rank5@0.5", "mIoU"]


@pytest.mark.parametrize(("strict", "expected"), [(True, 0.0), (False, 100.0)])
@pytest.mark.parametrize(("end", "threshold"), [(5.0, 0.5), (7.0, 0.7)])
def test_iou_at_the_threshold(end, threshold, strict, expected):
    metrics = LocalizationMetrics(ranks=(1,), thresholds=(threshold,), strict=strict)
    metrics.update(torch.tensor([[[0.0, end]]]), torch.tensor([[0.0, 10.0]]))
    assert metrics.compute()[f"Rank1@{threshold}"] == expected


def metrics_and_queries():
    """Each kind of metrics with ten queries."""
    moments, truth = random_moments(10, 5, seed=0), random_moments(10, 2, seed=1)
    segments = torch.tensor(in_seconds(all_segments(6)))
    ranked = torch.stack([segments[torch.randperm(21)] for _ in range(10)])
    return [
        (LocalizationMetrics, (moments, truth)),
        (SetMetrics, (moments, truth)),
        (DiDeMoMetrics, (ranked, ranked[:, :3].flip(0))),
        (CalibrationMetrics, (torch.rand(10), torch.rand(10) < 0.5)),
    ]


@pytest.mark.parametrize("size", [1, 4])
def test_batches_add_up(size):
    for kind, queries in metrics_and_queries():
        whole, parts = kind(), kind()
        whole.update(*queries)
        for batch in zip(*(one.split(size) for one in queries), strict=True):
            parts.update(*batch)
        parts.update(*(one[:0] for one in queries))
        assert parts.compute() == whole.compute(), kind


def test_reset_forgets_all_queries():
    for kind, queries in metrics_and_queries():
        metrics = kind()
        metrics.update(*queries)
        before, other = metrics.compute(), copy.copy(metrics)
        metrics.reset()
        metrics.update(*(one[:0] for one in queries))
        with refuses(ArgumentError, f"{kind.__name__}: expected at least one query"):
            metrics.compute()
        metrics.update(*queries)
        assert metrics.compute() == before == other.compute()


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


def test_bad_arguments_are_refused():
    for fields, text in (
        ({"ranks": ()}, "the number of ranks to be an integer >= 1, got 0."),
        ({"ranks": (0,)}, "ranks to be an integer >= 1, got 0."),
        ({"thresholds": (50,)}, "thresholds in [0, 1], got 50."),
    ):
        with refuses(ArgumentError, f"LocalizationMetrics: expected {text}"):
            LocalizationMetrics(**fields)
    predicted, truth = torch.zeros(2, 5, 2), torch.zeros(2, 2)
    for args, text in (
        ((truth, truth), "predicted of shape (B, n, 2), got (2, 2)."),
        ((predicted, truth[:1]), "truth of shape (B, M, 2) with B = 2, got (1, 1"),
        ((predicted, truth, torch.ones(1)), "num_truths of shape (B) with B = 2, got (1,)."),
    ):
        with refuses(ShapeError, f"best_ious: expected {text}"):
            best_ious(*args)


# DiDeMo


def all_segments(count: int) -> list[tuple[int, int]]:
    """First and last segment of every moment, inclusive."""
    return [(s, e) for s in range(count) for e in range(s, count)]


def in_seconds(segments) -> list[list[float]]:
    return [[5.0 * start, 5.0 * (end + 1)] for start, end in segments]


def official(ranking, annotators) -> tuple[float, float]:
    """Mean rank and IoU of a query, in inclusive indices, straight from the definition."""
    ranks = sorted(ranking.index(one) + 1 for one in annotators)[:3]
    best = ranking[0]
    ious = sorted(
        max(0, min(best[1], e) + 1 - max(best[0], s)) / (max(best[1], e) + 1 - min(best[0], s))
        for s, e in annotators
    )[-3:]
    return sum(ranks) / len(ranks), sum(ious) / len(ious)


@quick
@given(st.randoms(use_true_random=False), st.sampled_from([5, 6]), st.integers(1, 4))
def test_didemo_equals_the_definition(random, count, queries):
    moments, metrics = all_segments(count), DiDeMoMetrics()
    rankings = [random.sample(moments, len(moments)) for _ in range(queries)]
    marked = [random.choices(moments, k=random.randint(1, 7)) for _ in range(queries)]
    truth = torch.zeros(queries, 7, 2)
    for row, one in enumerate(marked):
        truth[row, : len(one)] = torch.tensor(in_seconds(one))
    # From a model of six segments: moments that a video of five lacks are invalid.
    predicted = torch.zeros(queries, 21, 2)
    predicted[:, : len(moments)] = torch.tensor([in_seconds(one) for one in rankings])
    valid = (torch.arange(21) < len(moments)).expand(queries, -1)
    ranked = RankedMoments(predicted, torch.zeros(queries, 21), valid)
    metrics.update(ranked, truth, torch.tensor([len(one) for one in marked]))
    found = metrics.compute()
    expected = [official(*pair) for pair in zip(rankings, marked, strict=True)]
    for n in (1, 5):
        share = sum(rank <= n for rank, _ in expected) / queries
        assert found[f"Rank@{n}"] == pytest.approx(100 * share)
    assert found["mIoU"] == pytest.approx(100 * sum(iou for _, iou in expected) / queries)


@pytest.mark.parametrize(
    ("count", "annotators", "expected"),
    [
        # Three of four agree with the first moment: the fourth does not count.
        (6, [(2, 2), (2, 2), (5, 5), (2, 2)], (100, 100, 100)),
        # Two of four agree, the third marked the second moment: mean rank 4 / 3.
        (6, [(2, 2), (2, 2), (2, 3), (0, 0)], (0, 100, 100 * (1 + 1 + 1 / 2) / 3)),
        # Seven annotators: the best three are still three.
        (6, [*[(2, 2)] * 3, (0, 0), (0, 0), (1, 1), (0, 4)], (100, 100, 100)),
        # Five segments have 15 moments: rank 15 is the last.
        (5, [(4, 4)] * 4, (0, 0, 0)),
    ],
)
def test_didemo_on_hand_made_cases(count, annotators, expected):
    # First (2, 2) and (2, 3), last (4, 4).
    ranking = sorted(
        all_segments(count), key=lambda one: (one == (4, 4), one not in [(2, 2), (2, 3)])
    )
    metrics = DiDeMoMetrics()
    metrics.update(torch.tensor([in_seconds(ranking)]), torch.tensor([in_seconds(annotators)]))
    assert [*metrics.compute().values()] == pytest.approx(expected)


def test_didemo_refuses_a_ranking_with_gaps():
    metrics = DiDeMoMetrics()
    expected = "expected a ranking of all moments, got one without 5 to 10 s in row 0."
    with refuses(ArgumentError, f"DiDeMoMetrics: {expected}"):
        metrics.update(torch.tensor([[[0.0, 5.0]]]), torch.tensor([[[5.0, 10.0]]]))
    with refuses(ShapeError, "DiDeMoMetrics: expected truth of shape (B, M, 2) with B = 1"):
        metrics.update(torch.zeros(1, 3, 2), torch.zeros(2, 4, 2))


@cache
def best_iou(count: int, annotators: tuple[tuple[int, int], ...]) -> float:
    """Best IoU of a query over all answers."""
    legal = all_segments(count)
    return max(official([one, *legal], annotators)[1] for one in legal)


@pytest.mark.parametrize(("split", "ceilings"), [("val", (74.81, 96.04)), ("test", (74.76, 96.05))])
def test_didemo_gives_the_known_values_of_the_official_files(data_root, split, ceilings):
    """The frequency prior of the official evaluation, and the ceilings of annotators' agreement.

    Source: the official README (prior); counted from the files (ceilings).
    """
    items = load_didemo(data_root / "didemo", split)
    if split == "val":
        found = evaluate_didemo_prior(items, items)
        assert found["Rank@1"] == pytest.approx(18.6842, abs=1e-4)
        assert found["mIoU"] == pytest.approx(25.2216, abs=1e-4)
    # Any three annotators, over all answers.
    agreed, ious = 0, 0.0
    for item in items:
        segments = sorted((int(s / 5), int(e / 5) - 1) for s, e in item.moments)
        agreed += max(Counter(segments).values()) >= 3
        ious += best_iou(int(item.duration / 5), tuple(segments))
    found = (100 * agreed / len(items), 100 * ious / len(items))
    assert found == pytest.approx(ceilings, abs=0.01)


@quick
@given(st.randoms(use_true_random=False), st.integers(0, 7))
def test_consensus_is_the_moment_that_agrees_best(random, annotators):
    marked = random.choices(in_seconds(all_segments(6)), k=annotators)
    moments = torch.rand(1, 7, 2)
    moments[0, :annotators] = torch.tensor(marked).view(-1, 2)
    found = consensus_moments(moments, torch.tensor([annotators]))[0].tolist()
    marked = marked or [[0, 0]]
    agreement = [sum(interval_iou(one, other) for other in marked) for one in marked]
    ties = [
        one for one, value in zip(marked, agreement, strict=True) if value > max(agreement) - 1e-9
    ]
    assert found in ties


def test_queries_without_an_annotated_moment_are_left_out():
    predicted, truth = random_moments(4, 5, seed=0), random_moments(4, 2, seed=1)
    alone, among = LocalizationMetrics(), LocalizationMetrics()
    alone.update(predicted[::2], truth[::2])
    among.update(predicted, truth, torch.tensor([2, 0, 2, 0]))
    among.update(predicted, torch.zeros(4, 0, 2))
    assert among.compute() == alone.compute()
    assert not bool(best_ious(predicted, torch.zeros(4, 0, 2)).any())
    assert not bool(best_ious(predicted, truth, torch.zeros(4))[0].any())
    none = LocalizationMetrics()
    none.update(predicted, truth, torch.zeros(4))
    with refuses(ArgumentError, "expected at least one query with an annotated moment, got none."):
        none.compute()


def test_queries_are_added_without_a_wait():
    predicted, truth = random_moments(4, 3, seed=0), random_moments(4, 2, seed=1)
    ranked = RankedMoments(predicted, torch.rand(4, 3), torch.rand(4, 3) > 0.2)
    counts = torch.tensor([1, 2, 2, 1])
    metrics = LocalizationMetrics()
    with no_host_sync():
        metrics.update(ranked, truth, counts)
    with on_a_device() as put:
        there = RankedMoments(*put((predicted, ranked.scores, ranked.valid)))
        truth, counts = put((truth, counts))
        with no_host_sync():
            metrics.update(there, truth, counts)


def set_f1(given, truth, threshold):
    """F1 by trying all ways to match one to one."""
    few, many = sorted((given, truth), key=len)
    ways = permutations(many, len(few))
    pairs = max(sum(interval_iou(a, b) > threshold for a, b in zip(few, some, strict=True))
                for some in ways)  # fmt: skip
    return 2 * pairs / (len(given) + len(truth)) if given or truth else 1.0


@quick
@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 4), st.integers(0, 99))
def test_sets_are_matched_one_to_one_in_the_best_way(queries, returned, annotated, seed):
    generator = torch.Generator().manual_seed(seed)
    # Long moments, which match several others.
    predicted, truth = (
        torch.rand(queries, count, 2, generator=generator) * 0.4 + torch.tensor([0.0, 0.5])
        for count in (returned, annotated)
    )
    counts = torch.randint(0, annotated + 1, (queries,), generator=generator)
    valid = torch.rand(queries, returned, generator=generator) < 0.6  # not only the first
    ranked = RankedMoments(predicted, valid.float(), valid)
    metrics = SetMetrics(thresholds=(0.5, 0.8))
    for part in (slice(0, 2), slice(2, None)):
        batch = RankedMoments(ranked.moments[part], ranked.scores[part], valid[part])
        metrics.update(batch, truth[part], counts[part])
    found = metrics.compute()
    rows = [
        (one[some].tolist(), other[:m].tolist())
        for one, some, other, m in zip(predicted, valid, truth, counts, strict=True)
    ]
    for threshold in (0.5, 0.8):
        mean = sum(set_f1(*row, threshold) for row in rows) / queries
        assert found[f"Set-F1@{threshold}"] == pytest.approx(100 * mean)
    errors = [abs(len(one) - len(other)) for one, other in rows]
    assert found["Set-count-error"] == pytest.approx(sum(errors) / queries)
    exact = [set_f1(*row, 0.5) == 1 for row in rows]
    assert found["Set-exact"] == pytest.approx(100 * sum(exact) / queries)


def test_an_iou_of_just_the_threshold_matches_nothing():
    metrics = SetMetrics(thresholds=(0.5, 0.4))
    metrics.update(torch.tensor([[[0.0, 10.0]]]), torch.tensor([[0.0, 5.0]]))
    assert [metrics.compute()[f"Set-F1@{m}"] for m in (0.5, 0.4)] == [0, 100]


def test_sets_need_thresholds_and_shapes():
    with refuses(ArgumentError, "number of thresholds"):
        SetMetrics(thresholds=())
    with refuses(ShapeError, "truth"):
        SetMetrics().update(torch.zeros(2, 1, 2), torch.zeros(3, 1, 2))
