"""Metrics without a model: of predictions, a prior, and the upper bound of a grid."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tmapdiff._core.checks import check_int, check_shape, message
from tmapdiff.data import AnnotationSet, MomentBatch, Prediction
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation._answers import batches, whole_batches
from tmapdiff.maps import (
    IoUMapBuilder,
    MapGrid,
    MultiScaleMapSampler,
    RankedMoments,
    rank_candidates,
)
from tmapdiff.metrics import LocalizationMetrics

_BATCH_SIZE = 256


def evaluate_predictions(
    predictions: Iterable[Prediction],
    annotations: AnnotationSet,
    *,
    ranks: Sequence[int] = (1, 5),
    thresholds: Sequence[float] = (0.5, 0.7),
    strict: bool = True,
) -> dict[str, float]:
    """Compute the metrics of predictions, one's own or another program's, in percent.

    Args:
        predictions: One per query, in any order, such as `read_submission` returns; the moments of
            each, best first.
        annotations: The queries.
        ranks: As for `LocalizationMetrics`.
        thresholds: As for `LocalizationMetrics`.
        strict: Count an IoU above a threshold; if False, at the threshold too, as moment_detr,
            lighthouse and VSLNet do.

    Raises:
        ArgumentError: If a query has no prediction or two, a prediction is of none of the queries,
            there are no queries, or a rank or threshold is out of range.
    """
    who = "evaluate_predictions"
    metrics = LocalizationMetrics(ranks, thresholds, strict=strict)
    check_int(who, "queries", len(annotations), at_least=1)
    given = list(predictions)
    windows = {prediction.qid: prediction.windows for prediction in given}
    wanted = [item.qid for item in annotations]
    for name, qids in (
        ("a prediction of each query", set(wanted) - windows.keys()),
        ("predictions of the annotated queries alone", windows.keys() - set(wanted)),
    ):
        if qids:
            got = f"{len(qids)} queries otherwise, such as {min(map(repr, qids))}"
            raise ArgumentError(message(who, f"{name}, by qid", got))
    if len(windows) != len(given):
        got = f"{len(given)} of {len(windows)} queries"
        raise ArgumentError(message(who, "one prediction a query", got))
    rows, counts = _padded([windows[qid][: max(ranks)] for qid in wanted], 3)
    valid = torch.arange(rows.shape[1]) < counts[:, None]
    ranked = RankedMoments(moments=rows[..., :2], scores=rows[..., 2], valid=valid)
    metrics.update(ranked, *_padded([item.moments for item in annotations], 2))
    return metrics.compute()


def fit_moment_prior(grid: MapGrid, dataset: Dataset[Any], *, threshold: float = 0.5) -> Tensor:
    """Share of a data set's moments that each cell hits: a prior that ignores video and query.

    Ranked like a model's maps, it gives the best constant answer.

    Args:
        grid: The candidate moments.
        dataset: Usually the `MomentDataset` of training.
        threshold: IoU above which a moment counts as hit.

    Shape:
        - returns: (cells,), in [0, 1]

    Raises:
        ArgumentError: If the data set is empty.
    """
    count = check_int("fit_moment_prior", "queries", len(dataset), at_least=1)  # type: ignore[arg-type]
    build = IoUMapBuilder(grid)
    hits = torch.zeros(grid.num_cells, dtype=torch.float64)
    for batch in batches(dataset, _BATCH_SIZE):
        iou = build.packed(batch.moments, batch.clip_seconds, batch.num_moments)
        if batch.num_clips is not None:
            iou = iou.masked_fill(~grid.packed_mask(num_clips=batch.num_clips), 0)
        hits += (iou > threshold).sum(0)
    return (hits / count).float()


def evaluate_prior(
    grid: MapGrid, prior: Tensor, dataset: Dataset[Any], *, nms_threshold: float = 0.49
) -> dict[str, float]:
    """Metrics of answering every query with the best moments of a prior, in percent.

    Args:
        grid: The candidate moments.
        prior: How good each is, whatever video and query, such as `fit_moment_prior` returns.
        dataset: Queries with their moments.
        nms_threshold: Moments with a higher IoU than this with a better one are dropped.

    Shape:
        - prior: (cells,)

    Raises:
        ShapeError: If the prior is not of the grid, or videos are longer than it.
        ArgumentError: If the data set is empty.
    """
    metrics = LocalizationMetrics()
    grid.unpack(prior[None])  # which checks its shape
    for batch in whole_batches(dataset, _BATCH_SIZE):
        if batch.num_clips is not None:
            hint = "The prior is only defined for videos of the grid's length."
            axes = f"B {grid.num_clips} D"
            check_shape("evaluate_prior", "features", batch.features, axes, hint=hint)
        ranked = _ranked(grid, prior.expand(len(batch), -1), batch, nms_threshold)
        metrics.update(ranked, batch.moments, batch.num_moments)
    return metrics.compute()


def evaluate_oracle(
    grid: MapGrid, dataset: Dataset[Any], *, nms_threshold: float = 0.49
) -> dict[str, float]:
    """Metrics of ranking the true IoU maps, in percent: the upper bound of the grid.

    Args:
        grid: The candidate moments.
        dataset: Queries with their moments.
        nms_threshold: Moments with a higher IoU than this with a better one are dropped.

    Raises:
        ArgumentError: If the data set is empty.
    """
    metrics = LocalizationMetrics()
    for batch in whole_batches(dataset, _BATCH_SIZE):
        size = grid if batch.num_clips is None else grid.resized(batch.features.shape[1])
        maps = IoUMapBuilder(size).packed(batch.moments, batch.clip_seconds, batch.num_moments)
        ranked = _ranked(size, maps, batch, nms_threshold)
        metrics.update(ranked, batch.moments, batch.num_moments)
    return metrics.compute()


def _ranked(grid: MapGrid, maps: Tensor, batch: MomentBatch, nms_threshold: float) -> RankedMoments:
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(maps, batch.num_clips)
    return rank_candidates(
        candidates,
        scores,
        batch.clip_seconds,
        durations=batch.durations,
        nms_threshold=nms_threshold,
    )


def _padded(tables: Sequence[Sequence[Sequence[float]]], columns: int) -> tuple[Tensor, Tensor]:
    """Stack tables, padded to the longest, and count the rows of each."""
    each = [torch.tensor(rows, dtype=torch.float64).reshape(-1, columns) for rows in tables]
    return pad_sequence(each, batch_first=True), torch.tensor([len(rows) for rows in each])
