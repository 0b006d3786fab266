"""The official evaluation of QVHighlights: several moments per query, and highlights."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmapdiff._core.checks import message
from tmapdiff.data import Annotation, Prediction
from tmapdiff.errors import ArgumentError

Array = NDArray[np.float64]

_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_LENGTHS = {"full": (0, np.inf), "short": (0, 10), "middle": (10, 30), "long": (30, 150)}  # seconds
_RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}  # from 0 to 4
_MOST_WINDOWS = 10


def qvhighlights_metrics(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation]
) -> dict[str, float]:
    """Compute what `evaluate_predictions` does with this protocol; one prediction per query."""
    pairs = list(zip(predictions, annotations, strict=True))
    results: dict[str, float] = {}
    for name, bounds in _LENGTHS.items():
        results |= _moment_metrics(f"MR-{name}", pairs, bounds)
    if _have_saliency("predictions", predictions) and _have_saliency("queries", annotations):
        for name, rating in _RATINGS.items():
            results |= _highlight_metrics(f"HL-min-{name}", pairs, rating)
    return results


def _have_saliency(what: str, items: Sequence[Prediction] | Sequence[Annotation]) -> bool:
    lacking = [item.qid for item in items if item.saliency is None]
    if lacking and len(lacking) < len(items):
        got = f"{len(lacking)} of {len(items)} without, such as {lacking[0]!r}"
        expected = f"saliency in all {what} or in none"
        raise ArgumentError(message("evaluate_predictions", expected, got))
    return not lacking


def _moment_metrics(
    name: str, pairs: list[tuple[Prediction, Annotation]], bounds: tuple[float, float]
) -> dict[str, float]:
    recalls, precisions = [], []
    for prediction, annotation in pairs:
        truths = [(a, b) for a, b in annotation.moments if bounds[0] < b - a <= bounds[1]]
        if truths:
            windows = np.asarray(prediction.windows, dtype=float).reshape(-1, 3)[:_MOST_WINDOWS]
            ious = _ious(windows, np.asarray(truths))
            recalls.append([ious[:1].max(initial=0) >= m for m in _THRESHOLDS])
            ranked = ious[np.argsort(-windows[:, 2], kind="stable")]
            precisions.append([moment_precision(ranked, m) for m in _THRESHOLDS])
    results = {f"{name}-mAP": 100 * float(np.mean(precisions))} if precisions else {}
    for metric, values in (("R1", recalls), ("mAP", precisions)):
        if values:
            at_thresholds = zip(_THRESHOLDS, np.mean(values, axis=0), strict=True)
            results |= {f"{name}-{metric}@{m:g}": 100 * float(mean) for m, mean in at_thresholds}
    return results


def _highlight_metrics(
    name: str, pairs: list[tuple[Prediction, Annotation]], rating: int
) -> dict[str, float]:
    hits, precisions = [], []
    for prediction, annotation in pairs:
        positive = np.asarray(annotation.saliency) >= rating  # (clips, annotators)
        scores = np.asarray(prediction.saliency, dtype=float)
        best = scores.argmax()
        hits.append(best < len(positive) and positive[best].any())
        # Clips that have no score count as scored 0.
        scores = np.pad(scores, (0, max(len(positive) - len(scores), 0)))[: len(positive)]
        precisions.append([clip_precision(scores, one) for one in positive.T])
    return {
        f"{name}-mAP": 100 * float(np.mean(precisions)),
        f"{name}-Hit1": 100 * float(np.mean(hits)),
    }


def moment_precision(ious: Array, threshold: float) -> float:
    """Average precision of ranked moments, where each annotated one can be found once.

    Shape:
        - ious: (predicted, annotated), best prediction first
    """
    found = np.zeros(len(ious))
    free = np.ones(ious.shape[1], dtype=bool)
    for rank, row in enumerate(ious):
        # The best that is free; the last of equal ones, as in the official evaluation.
        best = ious.shape[1] - 1 - np.where(free, row, -1)[::-1].argmax()
        if free[best] and row[best] >= threshold:
            found[rank], free[best] = 1, False
    precision = found.cumsum() / np.arange(1, len(found) + 1)
    return float((_best_from_here(precision) * found).sum() / ious.shape[1])


def clip_precision(scores: Array, positive: NDArray[np.bool_]) -> float:
    """Average precision of clips ranked by score: the mean over the recalls that it reaches.

    Shape:
        - scores, positive: (clips,)
    """
    if positive.all() or not positive.any():
        return float(positive.all())
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of those with equal scores
    found = positive[order].cumsum()[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float(_best_from_here(precision)[np.diff(found, prepend=0) > 0].mean())


def _best_from_here(precision: Array) -> Array:
    return np.maximum.accumulate(precision[::-1])[::-1]


def _ious(predicted: Array, truths: Array) -> Array:
    starts = np.maximum(predicted[:, None, 0], truths[:, 0])
    ends = np.minimum(predicted[:, None, 1], truths[:, 1])
    shared = (ends - starts).clip(min=0)
    lengths = (predicted[:, 1] - predicted[:, 0])[:, None] + truths[:, 1] - truths[:, 0]
    return shared / (lengths - shared)
