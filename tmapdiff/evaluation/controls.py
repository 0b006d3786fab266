"""Metrics without a model: of predictions, of a prior, and of a grid's upper bound."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tmapdiff._core.checks import check_choice, check_int, message
from tmapdiff.data import SEGMENT_SECONDS, AnnotationSet, MomentBatch, Prediction
from tmapdiff.data._spelling import find_spelling
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.evaluation._answers import batches, windows_of
from tmapdiff.evaluation._qvhighlights import (
    MOST_WINDOWS,
    annotations_of,
    padded,
    qvhighlights_metrics,
)
from tmapdiff.maps import (
    IoUMapBuilder,
    MapGrid,
    MultiScaleMapSampler,
    RankedMoments,
    rank_candidates,
)
from tmapdiff.metrics import DiDeMoMetrics, LocalizationMetrics, SetMetrics

_BATCH_SIZE = 256
_DIDEMO_SEGMENTS = 6

Protocol = Literal["rank", "didemo", "qvhighlights"]
PredictionProtocol = Literal["rank", "qvhighlights"]


def evaluate_predictions(
    predictions: Iterable[Prediction],
    annotations: AnnotationSet,
    *,
    ranks: Sequence[int] = (1, 5),
    thresholds: Sequence[float] = (0.5, 0.7),
    strict: bool = True,
    protocol: PredictionProtocol = "rank",
) -> dict[str, float]:
    """Compute metrics of predictions, of this library or any other program, in percent.

    Queries without a moment are ignored.

    The protocol `qvhighlights` follows moment_detr's `standalone_eval`, with the same names:

    - `MR-full-R1@0.5` to `@0.95`: how often the best moment has at least this IoU with an annotated
      one
    - `MR-full-mAP@0.5` to `@0.95`: average precision of the first ten moments, by their scores;
      `MR-full-mAP` is the mean over these thresholds
    - `MR-short`, `MR-middle`, `MR-long`: the same for annotated moments of up to 10, 30 and 150 s,
      if there are any. Longer moments count only in `MR-full`
    - `HL-min-Fair-mAP`, `-Good-`, `-VeryGood-`: average precision of the clips that annotators
      rated at least 2, 3 or 4 of 4; `-Hit1`: how often the best clip is one of them. They need
      saliency in the predictions, and ignore queries without rated clips

    Args:
        predictions: One per query, in any order, for example from `read_submission`; the moments of
            each with the best first.
        annotations: The queries.
        ranks: As for `LocalizationMetrics`.
        thresholds: As for `LocalizationMetrics`.
        strict: Whether an IoU must be above a threshold. False also counts an IoU at the threshold,
            as moment_detr, lighthouse and VSLNet do.
        protocol: `rank` for Rank n@m and mean IoU, or `qvhighlights`, which has fixed `ranks`,
            `thresholds` and `strict`.

    Raises:
        ArgumentError: If there is not exactly one prediction per query, a prediction belongs to no
            query or to another video than its query, no query has a moment, a rank or threshold is
            out of range or given with `qvhighlights`, or only some predictions have saliency.
        ConfigError: If the protocol is unknown.

    Source: for `qvhighlights`, Lei et al., arXiv 2107.09609.
    """
    who = "evaluate_predictions"
    check_choice(who, "protocol", protocol, get_args(PredictionProtocol))
    metrics = LocalizationMetrics(ranks, thresholds, strict=strict)
    ways = (metrics.ranks, metrics.thresholds, strict)
    if protocol != "rank" and ways != ([1, 5], [0.5, 0.7], True):
        expected = f"no ranks, thresholds or strict with protocol {protocol!r}"
        raise ArgumentError(message(who, expected, "some"))
    given = _in_order(who, predictions, annotations)
    if protocol == "qvhighlights":
        return qvhighlights_metrics(given, annotations)
    metrics.update(_ranked(given, max(ranks)), *_truths(annotations))
    return metrics.compute()


def evaluate_sets(
    predictions: Iterable[Prediction],
    annotations: AnnotationSet,
    *,
    thresholds: Sequence[float] = (0.5, 0.7),
) -> dict[str, float]:
    """Compute `SetMetrics` of predictions, of this library or any other program.

    All moments of a prediction count, whatever their order and scores. If a program always returns
    many, select some first.

    Args:
        predictions: One per query, in any order; it may have no moments.
        annotations: The queries.
        thresholds: As for `SetMetrics`.

    Raises:
        ArgumentError: If there are no queries, there is not exactly one prediction per query, a
            prediction belongs to no query or to another video than its query, or a threshold is
            out of range.
    """
    metrics = SetMetrics(thresholds)
    given = _in_order("evaluate_sets", predictions, annotations)
    metrics.update(_ranked(given), *_truths(annotations))
    return metrics.compute()


def _in_order(
    who: str, predictions: Iterable[Prediction], annotations: AnnotationSet
) -> list[Prediction]:
    """Return the predictions in the order of the annotated queries; there must be one for each."""
    check_int(who, "queries", len(annotations), at_least=1)
    given = list(predictions)
    by_qid = {prediction.qid: prediction for prediction in given}
    wanted = [item.qid for item in annotations]
    for expected, fault, qids in (
        ("a prediction for each query", "without one", set(wanted) - by_qid.keys()),
        ("predictions for annotated queries only", "not annotated", by_qid.keys() - set(wanted)),
    ):
        if qids:
            got = f"{len(qids)} queries {fault}, such as qid {min(map(repr, qids))}"
            raise ArgumentError(message(who, expected, got))
    if len(by_qid) != len(given):
        got = f"{len(given)} for {len(by_qid)} queries"
        raise ArgumentError(message(who, "one prediction per query", got))
    _, names = find_spelling(annotations.video_ids, {one.video_id for one in given})
    for item in annotations:
        if (got := by_qid[item.qid].video_id) != names.get(item.video_id):
            expected = f"a prediction in video {item.video_id!r} for qid {item.qid!r}"
            hint = "Do the predictions belong to another split?"
            raise ArgumentError(message(who, expected, f"one in {got!r}", hint))
    return [by_qid[qid] for qid in wanted]


def _ranked(predictions: Sequence[Prediction], most: int | None = None) -> RankedMoments:
    rows, counts = padded([one.windows[:most] for one in predictions], 3)
    valid = torch.arange(rows.shape[1]) < counts[:, None]
    return RankedMoments(moments=rows[..., :2], scores=rows[..., 2], valid=valid)


def _truths(annotations: AnnotationSet) -> tuple[Tensor, Tensor]:
    return padded([item.moments for item in annotations], 2)


def fit_moment_prior(grid: MapGrid, dataset: Dataset[Any], *, threshold: float = 0.5) -> Tensor:
    """Compute the share of a data set's queries that each cell hits: a prior that ignores inputs.

    Ranked like a model's maps, it gives the best constant answer. Queries without a moment are
    ignored.

    Args:
        grid: The candidate moments.
        dataset: Usually the training set, a `MomentDataset`.
        threshold: IoU above which a moment counts as a hit.

    Shape:
        - returns: (cells,), in [0, 1]

    Raises:
        ShapeError: If a video is longer than the grid, or clips that divide videos equally are not
            as many as the grid's.
        ArgumentError: If no query has a moment, or the data set has random negatives
            (`with_negatives`).
    """
    build = IoUMapBuilder(grid)
    hits, count = torch.zeros(grid.num_cells, dtype=torch.float64), 0
    for batch in batches("fit_moment_prior", dataset, _BATCH_SIZE, windows=True):
        _check_fits("fit_moment_prior", grid, batch)
        iou = build.packed(batch.moments, batch.clip_seconds, batch.num_moments)
        if batch.num_clips is not None:
            iou = iou.masked_fill(~grid.packed_mask(num_clips=batch.num_clips), 0)
        hits += (iou > threshold).sum(0)
        count += int((batch.num_moments > 0).sum())
    check_int("fit_moment_prior", "queries with a moment", count, at_least=1)
    return (hits / count).float()


def evaluate_prior(
    grid: MapGrid,
    prior: Tensor,
    dataset: Dataset[Any],
    *,
    protocol: PredictionProtocol = "rank",
) -> dict[str, float]:
    """Compute metrics of answering every query with the best moments of a prior, in percent.

    Args:
        grid: The candidate moments.
        prior: Score of each, for example from `fit_moment_prior`.
        dataset: Queries with their moments.
        protocol: As for `evaluate`.

    Shape:
        - prior: (cells,)

    Raises:
        ShapeError: If the prior does not have the grid's shape, a video is longer than the grid,
            or clips that divide videos equally are not as many as the grid's.
        ArgumentError: If the data set is empty, or does not suit the protocol.
        ConfigError: If the protocol is unknown.
    """
    grid.unpack(prior[None])  # checks its shape

    def answer(batch: MomentBatch) -> tuple[MapGrid, Tensor]:
        _check_fits("evaluate_prior", grid, batch)
        return grid, prior.expand(len(batch), -1)

    return _evaluate(answer, dataset, protocol)


def _check_fits(who: str, grid: MapGrid, batch: MomentBatch) -> None:
    """Raise ShapeError if videos have more clips than the grid or, without `num_clips`, others."""
    # Count clips, not rows of features: a clip may have several.
    counts, most = batch.num_clips, grid.num_clips
    if counts is not None and int(counts.max()) > most:
        hint = "The prior is only defined for videos of the grid's length."
        raise ShapeError(message(who, f"videos of at most {most} clips", int(counts.max()), hint))
    if counts is None:  # less a tiny remainder, which is a rounding error
        counts = (batch.durations / batch.clip_seconds - 1e-3).ceil().long()
        if others := set(counts.tolist()) - {most}:
            hint = "Make the grid with the num_clips of the data set."
            raise ShapeError(message(who, f"videos of {most} clips", min(others), hint))


def evaluate_oracle(
    grid: MapGrid,
    dataset: Dataset[Any],
    *,
    protocol: PredictionProtocol = "rank",
) -> dict[str, float]:
    """Compute metrics of ranking the true IoU maps, in percent: the upper bound of the grid.

    Args:
        grid: The candidate moments.
        dataset: Queries with their moments.
        protocol: As for `evaluate`.

    Raises:
        ShapeError: If clips that divide videos equally are not as many as the grid's.
        ArgumentError: If the data set is empty, or does not suit the protocol.
        ConfigError: If the protocol is unknown.
    """

    def answer(batch: MomentBatch) -> tuple[MapGrid, Tensor]:
        size = grid
        if batch.num_clips is None:
            _check_fits("evaluate_oracle", grid, batch)
        else:
            size = grid.resized(batch.features.shape[1])
        build = IoUMapBuilder(size)
        return size, build.packed(batch.moments, batch.clip_seconds, batch.num_moments)

    return _evaluate(answer, dataset, protocol)


def evaluate_didemo_prior(train: AnnotationSet, test: AnnotationSet) -> dict[str, float]:
    """Compute DiDeMo's official metric for moments ranked by their frequency in `train`.

    Args:
        train: Annotations to count moments in.
        test: The queries. All have the same answer, except for moments that end after their video;
            queries without a moment are ignored.

    Raises:
        ArgumentError: If no query of `test` has a moment.

    Source: the frequency prior of Hendricks et al., arXiv 1708.01641.
    """
    marked = Counter(moment for item in train for moment in item.moments)
    edges = [SEGMENT_SECONDS * segment for segment in range(_DIDEMO_SEGMENTS + 1)]
    ranked = sorted(combinations(edges, 2), key=lambda moment: -marked[moment])
    metrics = DiDeMoMetrics()
    for item in (item for item in test if item.moments):
        inside = [moment for moment in ranked if moment[1] <= item.duration]
        metrics.update(torch.tensor([inside]), torch.tensor([item.moments]))
    return metrics.compute()


def _evaluate(
    answer: Callable[[MomentBatch], tuple[MapGrid, Tensor]],
    dataset: Dataset[Any],
    protocol: PredictionProtocol,
) -> dict[str, float]:
    """Evaluate `answer`, which returns the grid and the packed maps of a batch."""
    check_choice("evaluate", "protocol", protocol, get_args(PredictionProtocol))
    annotations = annotations_of("evaluate", dataset, protocol)
    metrics, predictions = LocalizationMetrics(), []
    for batch in batches("evaluate", dataset, _BATCH_SIZE):
        grid, maps = answer(batch)
        ranked = rank_candidates(
            *MultiScaleMapSampler(grid).merge_packed(maps, batch.num_clips),
            batch.clip_seconds,
            durations=batch.durations,
            top_n=MOST_WINDOWS,
        )
        metrics.update(ranked, batch.moments, batch.num_moments)
        queries = zip(batch.qids, batch.queries, batch.video_ids, windows_of(ranked), strict=True)
        predictions += [Prediction(*query) for query in queries]
    results = metrics.compute()
    if annotations:
        results |= evaluate_predictions(predictions, annotations, protocol=protocol)
    return results
