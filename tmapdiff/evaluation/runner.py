"""Running a localizer over a data set."""

import time
from collections.abc import Callable
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
    """Metrics in percent, the predictions behind them, and how long they took.

    Attributes:
        metrics: `Rank1@0.5` and the like, and `mIoU`; then those of sets and of another protocol.
        predictions: One per query, in the data set's order.
        seconds: Wall time, including the reading of features.
        confidence: Score of each query's best moment, (Q,).
        iou: IoU of each query's best moment with the annotated one, for DiDeMo with the annotators'
            consensus, (Q,): with `confidence`, the input of `CalibrationMetrics` and
            `plot_calibration`. NaN of a query without a moment, whose answer is never right: take
            `[present]` of both to leave these out.
        presence: How likely it has one, as the model says, (Q,); None if it was not fitted to tell.
    """

    metrics: dict[str, float]
    predictions: tuple[Prediction, ...]
    seconds: float
    confidence: Tensor = field(compare=False)
    iou: Tensor = field(compare=False)
    presence: Tensor | None = field(compare=False, default=None)

    @property
    def present(self) -> Tensor:
        """Whether each query has a moment, (Q,)."""
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
    answer: AnswerKind = "ranked",
    seed: int = 0,
    top_n: int | None = None,
    batch_size: int = 64,
    protocol: Protocol = "rank",
    on_batch: Callable[[int], None] | None = None,
    accelerator: "Accelerator | None" = None,
) -> Evaluation:
    """Localize every query of a data set.

    The noise of a query depends on `seed` and its position only, not on the batch size, device or
    number of processes.

    Queries without a moment ("not in this video") are left out of all metrics of moments. If the
    model was fitted to tell them (`fit_presence`), and there are queries of both kinds, the metrics
    of `presence_metrics` are added.

    Whatever the `protocol`, there are Rank n@m and mIoU, where a hit is an IoU above m (2D-TAN):

    - `rank` has no others.
    - `qvhighlights` adds those of `evaluate_predictions`, where a hit is an IoU of at least m
      (moment_detr): mean average precision of the first ten moments, for queries with several,
      and highlights. Predictions have saliency then, read off the maps (`map_saliency`).
    - `didemo` adds DiDeMo's own, of all moments ranked by their cells whatever the `ranking`, and
      of all annotators; its mIoU takes the place of the other. Rank n@m is of the annotators'
      consensus. It needs a localizer of 6 clips, 6 durations and 1 scale, whose cells are DiDeMo's
      moments, and a `MomentDataset` of `load_didemo` with `clip_seconds` of 5.

    With `answer="set"`, all are of the moments of the sets, and those of `SetMetrics` are added.

    Args:
        model: The localizer, in any mode.
        dataset: Usually a `MomentDataset`.
        num_inference_steps: Denoising steps. Defaults to the model's number.
        num_samples: Samples of each query that are averaged, or from whose sets one is chosen.
            Defaults to the model's number.
        eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM.
        ranking: How moments are read off the map, see `MapLocalizer.localize`. Defaults to the
            model's way.
        nms_threshold: Only for ranking by `nms` and sets, see `MapLocalizer.localize`.
        temperature: Not for ranking by `nms`, see `MapLocalizer.localize`.
        answer: `ranked` for the best moments, `set` for a set of them, see `MapLocalizer.localize`.
        seed: Seed of the noise.
        top_n: Moments per query. Defaults to 5, with `qvhighlights` to 10.
        batch_size: Queries localized at once.
        protocol: What is computed; `qvhighlights` reads the annotations of a `MomentDataset`.
        on_batch: Called after each batch with the number of its queries, for a progress bar.
        accelerator: The `accelerate.Accelerator` of several processes that all call this: each
            localizes a share of the queries, none twice, and all return the whole evaluation.

    Raises:
        ArgumentError: If the data set is empty, an argument is out of range, steps or samples are
            asked of a model that is not generative, there is an argument that the ranking or kind
            of answer has no use for (`MapLocalizer.localize`), scores are not finite, as damaged
            weights or features make them, or the data set is not what the protocol needs.
        ConfigError: If there is no such ranking, protocol or kind of answer.

    Source: Hendricks et al., arXiv 1708.01641 (`didemo`); Lei et al., arXiv 2107.09609
    (`qvhighlights`).
    """
    who = "evaluate"
    check_choice(who, "protocol", protocol, get_args(Protocol))
    annotations = annotations_of(who, dataset, protocol)
    if top_n is None:
        top_n = MOST_WINDOWS if annotations else 5
    elif annotations:
        hint = "It is the number of moments that protocol 'qvhighlights' judges."
        check_int(who, "top_n", top_n, at_least=MOST_WINDOWS, hint=hint)
    began, answers = time.perf_counter(), Answers(with_saliency=bool(annotations))
    metrics, of_didemo, of_sets = LocalizationMetrics(), DiDeMoMetrics(), SetMetrics()
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
    answered = answers.compute(began)
    results = metrics.compute()
    if answer == "set":
        results |= of_sets.compute()
    if protocol == "didemo":
        results |= of_didemo.compute()
    elif protocol == "qvhighlights":
        results |= evaluate_predictions(answered["predictions"], annotations, protocol=protocol)
    evaluation = Evaluation(results, **answered)
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
