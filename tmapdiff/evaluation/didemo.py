"""Evaluation on DiDeMo, with its official metric."""

from collections import Counter
from itertools import combinations
from typing import Any

import torch
from torch.utils.data import Dataset

from tmapdiff.data import SEGMENT_SECONDS, AnnotationSet
from tmapdiff.evaluation.runner import Evaluation, evaluate
from tmapdiff.metrics import DiDeMoMetrics
from tmapdiff.models import MapLocalizer

_SEGMENTS = 6


def evaluate_didemo(model: MapLocalizer, dataset: Dataset[Any], **options: Any) -> Evaluation:
    """Call `evaluate` with protocol `didemo` and the same `model`, `dataset` and `options`."""
    return evaluate(model, dataset, protocol="didemo", **options)


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
    edges = [SEGMENT_SECONDS * segment for segment in range(_SEGMENTS + 1)]
    ranked = sorted(combinations(edges, 2), key=lambda moment: -marked[moment])
    metrics = DiDeMoMetrics()
    for item in (item for item in test if item.moments):
        inside = [moment for moment in ranked if moment[1] <= item.duration]
        metrics.update(torch.tensor([inside]), torch.tensor([item.moments]))
    return metrics.compute()
