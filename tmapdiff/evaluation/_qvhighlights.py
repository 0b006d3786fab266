"""The official evaluation of QVHighlights: several moments per query, and highlights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tmapdiff._core.checks import message
from tmapdiff.data import Annotation, AnnotationSet, Prediction
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import temporal_iou

MOST_WINDOWS = 10
_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
# In seconds. As in the official evaluation, moments above 150 s are only in "full".
_LENGTHS = {"full": (0, math.inf), "short": (0, 10), "middle": (10, 30), "long": (30, 150)}
_RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}  # from 0 to 4


def annotations_of(who: str, dataset: Dataset[Any], protocol: str) -> AnnotationSet:
    """Return the annotations of a data set if the protocol needs more than its batches."""
    if protocol != "qvhighlights":
        return AnnotationSet(())
    annotations = getattr(dataset, "annotations", None)
    if not isinstance(annotations, AnnotationSet):
        expected = f"a MomentDataset, whose annotations protocol {protocol!r} needs"
        raise ArgumentError(message(who, expected, type(dataset).__name__))
    return annotations


def qvhighlights_metrics(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation]
) -> dict[str, float]:
    """Compute the metrics of `evaluate_predictions` with this protocol; one prediction per query.

    Metrics of highlights need saliency in the predictions and in some annotations.
    """
    if not any(item.moments for item in annotations):
        expected = "at least one query with a moment"
        raise ArgumentError(message("evaluate_predictions", expected, "none"))
    results = _moment_metrics(predictions, annotations)
    lacking = [prediction.qid for prediction in predictions if prediction.saliency is None]
    if 0 < len(lacking) < len(predictions):
        got = f"{len(lacking)} of {len(predictions)} without it, such as {lacking[0]!r}"
        expected = "saliency in all predictions or in none"
        raise ArgumentError(message("evaluate_predictions", expected, got))
    pairs = zip(predictions, annotations, strict=True)
    # If the video has no moment for the query, no clip is right or wrong.
    rated = [
        (one.saliency or (), item.saliency) for one, item in pairs if item.saliency and item.moments
    ]
    return results | _highlight_metrics(rated) if rated and not lacking else results


def _moment_metrics(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation]
) -> dict[str, float]:
    windows, counts = padded([item.windows[:MOST_WINDOWS] for item in predictions], 3)
    windows = pad(windows, (0, 0, 0, MOST_WINDOWS - windows.shape[1]))
    lacking = torch.arange(MOST_WINDOWS) >= counts[:, None]
    truths, _ = padded([item.moments for item in annotations], 2)
    lengths = truths[..., 1] - truths[..., 0]  # 0 after the last
    ious = temporal_iou(windows[:, :, None, :2], truths[:, None])
    order = windows[..., 2].masked_fill(lacking, -torch.inf).sort(descending=True, stable=True)[1]
    ranked = ious.take_along_dim(order[..., None], dim=1)
    thresholds = torch.tensor(_THRESHOLDS, dtype=torch.float64)
    results: dict[str, float] = {}
    for name, (above, most) in _LENGTHS.items():
        counted = (above < lengths) & (lengths <= most)
        rows = counted.any(dim=1)
        if not rows.any():
            continue
        counted = counted[rows]
        first = ious[rows, 0].where(counted, 0).amax(dim=1)
        precisions = moment_precision(ranked[rows], counted, thresholds)
        results[f"MR-{name}-mAP"] = 100 * precisions.mean().item()
        hits = first[:, None] >= thresholds
        for metric, values in (("R1", hits.double()), ("mAP", precisions)):
            at_thresholds = zip(_THRESHOLDS, (100 * values.mean(dim=0)).tolist(), strict=True)
            results |= {f"MR-{name}-{metric}@{m:g}": value for m, value in at_thresholds}
    return results


def _highlight_metrics(
    rated: Sequence[tuple[Sequence[float], Sequence[Sequence[float]]]],
) -> dict[str, float]:
    """Compare the scores of each query's clips with their ratings, (clips, annotators)."""
    best: list[float] = []  # rating of the clip with the highest score
    tables: list[list[tuple[float, float]]] = []  # (score, rating) of clips, per annotator
    shares: list[float] = []  # weight of each annotator in the query
    for scores, clips in rated:
        first = scores.index(max(scores)) if scores else len(clips)
        best.append(max(clips[first], default=0) if first < len(clips) else 0)
        # Clips without a score count as 0.
        filled = (*scores[: len(clips)], *[0.0] * (len(clips) - len(scores)))
        of_each = [list(zip(filled, ratings, strict=True)) for ratings in zip(*clips, strict=True)]
        tables += of_each
        shares += [1 / len(of_each)] * len(of_each)
    rows, counts = padded(tables, 2)
    counted = torch.arange(rows.shape[1]) < counts[:, None]
    results = {}
    for name, rating in _RATINGS.items():
        precisions = clip_precision(rows[..., 0], rows[..., 1] >= rating, counted)
        mean = (precisions * torch.tensor(shares, dtype=torch.float64)).sum() / len(best)
        results[f"HL-min-{name}-mAP"] = 100 * mean.item()
        results[f"HL-min-{name}-Hit1"] = 100 * sum(one >= rating for one in best) / len(best)
    return results


def moment_precision(ious: Tensor, counted: Tensor, thresholds: Tensor) -> Tensor:
    """Compute the average precision, (B, thresholds), of ranked moments.

    `ious` are (B, predicted, annotated); each annotated moment that is `counted` is found once.
    """
    free = counted[:, None].expand(-1, len(thresholds), -1).clone()
    found = []
    for row in ious.unbind(dim=1):
        fits = row[:, None].where(free, -1)
        # The best that is not found yet; the last of equals, as in the official evaluation.
        best = free.shape[2] - 1 - fits.flip(2).argmax(dim=2, keepdim=True)
        found.append(fits.take_along_dim(best, dim=2) >= thresholds[:, None])
        free &= ~(found[-1] & (torch.arange(free.shape[2]) == best))
    hits = torch.cat(found, dim=2).double()
    precision = hits.cumsum(dim=2) / torch.arange(1, hits.shape[2] + 1)
    return (_best_from_here(precision) * hits).sum(dim=2) / counted.sum(dim=1, keepdim=True)


def clip_precision(scores: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """Compute the average precision, (B,), of clips by score: the mean over reached recalls.

    It is 1 if all clips are positive, and 0 if none is. All arguments are (B, clips).
    """
    positive = positive & counted
    scores, order = scores.masked_fill(~counted, -torch.inf).sort(dim=1, descending=True)
    found = positive.take_along_dim(order, dim=1).cumsum(dim=1)
    # The last of clips with equal scores, which are found together.
    last = pad(scores[:, 1:] != scores[:, :-1], (0, 1), value=True) & scores.isfinite()
    precision = found.double() / torch.arange(1, found.shape[1] + 1)
    before = pad(found.masked_fill(~last, 0).cummax(dim=1)[0][:, :-1], (1, 0))
    reached = last & (found > before)
    best = _best_from_here(precision.masked_fill(~last, 0))
    return (best * reached).sum(dim=1) / reached.sum(dim=1).clamp(min=1)


def _best_from_here(precision: Tensor) -> Tensor:
    return precision.flip(-1).cummax(dim=-1)[0].flip(-1)


def padded(tables: Sequence[Sequence[Sequence[float]]], columns: int) -> tuple[Tensor, Tensor]:
    """Stack tables, padded with 0 to the longest, and count the rows of each."""
    each = [torch.tensor(rows, dtype=torch.float64).reshape(-1, columns) for rows in tables]
    return pad_sequence(each, batch_first=True), torch.tensor([len(rows) for rows in each])
