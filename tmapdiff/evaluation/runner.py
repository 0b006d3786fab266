"""Evaluation of a localizer on a data set."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor
from torch.utils.data import Dataset

from tmapdiff._core.checks import check_choice, check_int, message
from tmapdiff.data import SEGMENT_SECONDS, MomentBatch, Prediction
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation._answers import Answers, localize_all, of_all_processes
from tmapdiff.evaluation._qvhighlights import MOST_WINDOWS, annotations_of
from tmapdiff.evaluation.controls import Protocol, evaluate_predictions
from tmapdiff.evaluation.presence import presence_metrics
from tmapdiff.maps import MultiScaleMapSampler, RankedMoments, rank_candidates
from tmapdiff.metrics import DiDeMoMetrics, LocalizationMetrics, SetMetrics, consensus_moments
from tmapdiff.models import AnswerKind, Localization, MapLocalizer, Ranking

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`: metrics, predictions, and the time they took.

    `confidence` and `iou` are the inputs of `CalibrationMetrics` and `plot_calibration`. Index both
    with `present` to leave out queries without a moment.

    Attributes:
        metrics: `Rank1@0.5` and the like, and `mIoU`, in percent; then those of sets and of the
            protocol.
        predictions: One per query, in the data set's order.
        seconds: Wall time, including the reading of features.
        confidence: Score of each query's best moment, (Q,).
        iou: IoU of each query's best moment with the annotated one, for DiDeMo with the annotators'
            consensus, (Q,). NaN for a query without a moment.
        presence: Predicted probability that each query has a moment, (Q,); None if the model was
            not fitted by `fit_presence`.
    """

    metrics: dict[str, float]
    predictions: tuple[Prediction, ...]
    seconds: float
    confidence: Tensor = field(compare=False)
    iou: Tensor = field(compare=False)
    presence: Tensor | None = field(compare=False, default=None)

    @property
    def present(self) -> Tensor:
        """Truth: whether each query has a moment, (Q,)."""
        return ~self.iou.isnan()

    @property
    def queries_per_second(self) -> float:
        """Queries localized per second."""
        return len(self.predictions) / self.seconds


def evaluate(
    model: MapLocalizer,
    dataset: Dataset[Any],
    *,
    num_inference_steps: int | None = None,
    num_samples: int | None = None,
    eta: float = 0.0,
    ranking: Ranking | None = None,
    nms_threshold: float | None = None,
    temperature: float | None = None,
    hit_thresholds: Sequence[float] | None = None,
    answer: AnswerKind = "ranked",
    seed: int = 0,
    top_n: int | None = None,
    batch_size: int = 64,
    protocol: Protocol = "rank",
    on_batch: Callable[[int], None] | None = None,
    accelerator: "Accelerator | None" = None,
) -> Evaluation:
    """Localize every query of a data set, and compute metrics.

    The noise of a query depends only on `seed` and its position in the data set, not on the batch
    size, device or number of processes.

    Queries without a moment ("not in this video") are left out of all metrics of moments. If the
    model predicts presence (`fit_presence`), and there are queries of both kinds, the metrics of
    `presence_metrics` are added.

    All protocols have Rank n@m and mIoU, where a hit is an IoU above m (2D-TAN):

    - `rank` has no others.
    - `qvhighlights` adds those of `evaluate_predictions`, where a hit is an IoU of at least m
      (moment_detr). Predictions then have saliency, computed by `map_saliency`.
    - `didemo` adds DiDeMo's own metrics. They rank all moments by their cells, whatever the
      `ranking`, and use all annotators; their mIoU replaces the other one. Rank n@m uses the
      annotators' consensus. It needs a localizer of 6 clips, 6 durations and 1 scale, whose cells
      are DiDeMo's moments, and a `MomentDataset` of `load_didemo` with `clip_seconds` of 5.

    With `answer="set"`, metrics are computed on the sets, and those of `SetMetrics` are added.

    Args:
        model: The localizer, in any mode.
        dataset: Usually a `MomentDataset`.
        num_inference_steps: Denoising steps. Defaults to the model's number.
        num_samples: Samples per query, which are averaged, or from whose sets one is chosen.
            Defaults to the model's number.
        eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM.
        ranking: As for `MapLocalizer.localize`. Defaults to the model's ranking.
        nms_threshold: As for `MapLocalizer.localize`.
        temperature: As for `MapLocalizer.localize`.
        hit_thresholds: As for `MapLocalizer.localize`.
        answer: `ranked` or `set`, see `MapLocalizer.localize`.
        seed: Seed of the noise.
        top_n: Moments per query. Defaults to 5, with `qvhighlights` to 10; with fewer than 5, there
            is no Rank 5.
        batch_size: Queries per batch.
        protocol: Metrics to compute, see above.
        on_batch: Called after each batch with its number of queries, for a progress bar.
        accelerator: The `accelerate.Accelerator` of several processes that all call this: each
            localizes a different share of the queries, and all return the whole evaluation.

    Raises:
        ArgumentError: If the data set is empty or does not suit the protocol, steps, samples or
            `eta` are requested from a model that is not generative, or as `MapLocalizer.localize`.
        ConfigError: If the ranking, protocol or kind of answer is unknown.

    Source: Hendricks et al., arXiv 1708.01641 (`didemo`); Lei et al., arXiv 2107.09609
    (`qvhighlights`).
    """
    who = "evaluate"
    check_choice(who, "protocol", protocol, get_args(Protocol))
    annotations = annotations_of(who, dataset, protocol)
    if top_n is None:
        top_n = MOST_WINDOWS if annotations else 5
    elif annotations:
        hint = "Protocol 'qvhighlights' evaluates this many moments."
        check_int(who, "top_n", top_n, at_least=MOST_WINDOWS, hint=hint)
    began, answers = time.perf_counter(), Answers(with_saliency=bool(annotations))
    most = check_int(who, "top_n", top_n, at_least=1)
    metrics = LocalizationMetrics([rank for rank in (1, 5) if rank <= most])
    of_didemo, of_sets = DiDeMoMetrics(), SetMetrics()
    for batch, found in localize_all(
        model,
        dataset,
        batch_size=batch_size,
        seed=seed,
        accelerator=accelerator,
        num_inference_steps=num_inference_steps,
        num_samples=num_samples,
        eta=eta,
        top_n=top_n,
        ranking=ranking,
        nms_threshold=nms_threshold,
        temperature=temperature,
        hit_thresholds=hit_thresholds,
        answer=answer,
    ):
        truth = (batch.moments, batch.num_moments)
        if protocol == "didemo":
            of_didemo.update(_all_ranked(batch, found), *truth)
            consensus = consensus_moments(batch.moments, batch.num_moments)
            truth = (consensus[:, None], batch.num_moments.clamp(max=1))
        metrics.update(found.ranked, *truth)
        if answer == "set":
            of_sets.update(found.ranked, *truth)
        answers.update(batch, found, *truth)
        if on_batch is not None:
            on_batch(len(batch))
    parts = of_all_processes(accelerator, metrics, of_didemo, of_sets, answers)
    metrics, of_didemo, of_sets, answers = parts
    answered = answers.compute()
    seconds = time.perf_counter() - began
    results = metrics.compute()
    if answer == "set":
        results |= of_sets.compute()
    if protocol == "didemo":
        results |= of_didemo.compute()
    elif protocol == "qvhighlights":
        results |= evaluate_predictions(answered["predictions"], annotations, protocol=protocol)
    evaluation = Evaluation(results, seconds=seconds, **answered)
    present, presence = evaluation.present, evaluation.presence
    if presence is not None and present.any() and not present.all():
        results |= presence_metrics(presence, present)
    return evaluation


def _all_ranked(batch: MomentBatch, found: Localization) -> RankedMoments:
    """Rank all moments of DiDeMo's videos by their cells."""
    if not bool((batch.clip_seconds == SEGMENT_SECONDS).all()):
        expected = f"clips of {SEGMENT_SECONDS:g} s, DiDeMo's segments"
        got, hint = f"{batch.clip_seconds[0]:g} s", "Pass clip_seconds to MomentDataset."
        raise ArgumentError(message("evaluate", expected, got, hint))
    candidates, scores = MultiScaleMapSampler(found.grid).merge_packed(found.maps, found.num_clips)
    return rank_candidates(
        candidates, scores, batch.clip_seconds, top_n=len(candidates), nms_threshold=1.0
    )
