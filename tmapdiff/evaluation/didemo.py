"""Evaluation on DiDeMo, with its official metric."""

import time
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from tmapdiff._core.checks import message
from tmapdiff.data import SEGMENT_SECONDS, AnnotationSet
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation._answers import Answers, localize_all, of_all_processes
from tmapdiff.evaluation.runner import Evaluation
from tmapdiff.maps import MultiScaleMapSampler, rank_candidates
from tmapdiff.metrics import DiDeMoMetrics, LocalizationMetrics, consensus_moments
from tmapdiff.models import MapLocalizer, Ranking

if TYPE_CHECKING:
    from accelerate import Accelerator

_SEGMENTS = 6
_ALL_MOMENTS = _SEGMENTS * (_SEGMENTS + 1) // 2


def evaluate_didemo(
    model: MapLocalizer,
    dataset: Dataset[Any],
    *,
    num_inference_steps: int | None = None,
    num_samples: int | None = None,
    eta: float = 0.0,
    ranking: Ranking | None = None,
    nms_threshold: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    accelerator: "Accelerator | None" = None,
) -> Evaluation:
    """Localize every query of DiDeMo, with its official metric and with Rank n@m.

    The official metric ranks all moments by their cells, and counts those of all annotators,
    whatever the `ranking`. Rank n@m judges the moments that `localize` answers by the annotators'
    consensus.

    `model` is a localizer of 6 clips, 6 durations and 1 scale, whose cells are DiDeMo's moments;
    `dataset` a `MomentDataset` of `load_didemo` with the moments of all annotators, and with
    `clip_seconds` of 5, so that clips are segments. `num_inference_steps`, `num_samples`, `eta`,
    `ranking`, `nms_threshold`, `seed`, `batch_size` and `accelerator` are as for `evaluate`.

    Raises:
        ArgumentError: As for `evaluate`, or if clips do not last 5 seconds.

    Source: Hendricks et al., arXiv 1708.01641.
    """
    began, answers = time.perf_counter(), Answers()
    official, metrics = DiDeMoMetrics(), LocalizationMetrics()
    for batch, found in localize_all(
        model,
        dataset,
        batch_size=batch_size,
        seed=seed,
        accelerator=accelerator,
        num_inference_steps=num_inference_steps,
        num_samples=num_samples,
        eta=eta,
        ranking=ranking,
        nms_threshold=nms_threshold,
    ):
        if not bool((batch.clip_seconds == SEGMENT_SECONDS).all()):
            expected = f"clips of {SEGMENT_SECONDS:g} s, DiDeMo's segments"
            got, hint = f"{batch.clip_seconds[0]:g} s", "Pass clip_seconds to MomentDataset."
            raise ArgumentError(message("evaluate_didemo", expected, got, hint))
        merged = MultiScaleMapSampler(found.grid).merge_packed(found.maps, found.num_clips)
        all_moments: Any = {"top_n": _ALL_MOMENTS, "nms_threshold": 1.0}
        ranked = rank_candidates(*merged, batch.clip_seconds, **all_moments)
        consensus = consensus_moments(batch.moments, batch.num_moments)
        official.update(ranked, batch.moments, batch.num_moments)
        metrics.update(found.ranked, consensus)
        answers.update(batch, found, consensus)
    official, metrics, answers = of_all_processes(accelerator, official, metrics, answers)
    # The official mIoU takes the place of the other.
    return Evaluation(metrics.compute() | official.compute(), *answers.compute(began))


def evaluate_didemo_prior(train: AnnotationSet, test: AnnotationSet) -> dict[str, float]:
    """Compute DiDeMo's official metric of ranking moments by how often they were marked.

    Args:
        train: The annotators' moments that are counted.
        test: The queries, which all get the same answer, less what lies past their video's end.

    Raises:
        ArgumentError: If `test` is empty.

    Source: the frequency prior of Hendricks et al., arXiv 1708.01641.
    """
    marked = Counter(moment for item in train for moment in item.moments)
    edges = [SEGMENT_SECONDS * segment for segment in range(_SEGMENTS + 1)]
    ranked = sorted(combinations(edges, 2), key=lambda moment: -marked[moment])
    metrics = DiDeMoMetrics()
    for item in test:
        inside = [moment for moment in ranked if moment[1] <= item.duration]
        metrics.update(torch.tensor([inside]), torch.tensor([item.moments]))
    return metrics.compute()
