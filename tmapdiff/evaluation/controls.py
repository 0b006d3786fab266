"""What needs no model: the best constant answer, and the upper bound of a grid."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tmapdiff._core.checks import check_int, check_shape
from tmapdiff.data import MomentBatch
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
