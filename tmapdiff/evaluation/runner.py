"""Running a localizer over a data set."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Dataset

from tmapdiff.data import Prediction
from tmapdiff.evaluation._answers import Answers, localize_all, of_all_processes
from tmapdiff.metrics import LocalizationMetrics
from tmapdiff.models import MapLocalizer, Ranking

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Evaluation:
    """Metrics in percent, the predictions behind them, and how long they took.

    Attributes:
        metrics: `Rank1@0.5` and the like, and `mIoU`, in percent.
        predictions: One per query, in the data set's order.
        seconds: Wall time, including the reading of features.
        confidence: Score of each query's best moment, (Q,).
        iou: IoU of each query's best moment with the annotated one, for DiDeMo with the annotators'
            consensus, (Q,): with `confidence`, the input of `CalibrationMetrics` and
            `plot_calibration`.
    """

    metrics: dict[str, float]
    predictions: tuple[Prediction, ...]
    seconds: float
    confidence: Tensor = field(compare=False)
    iou: Tensor = field(compare=False)

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
    seed: int = 0,
    top_n: int = 5,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
    accelerator: "Accelerator | None" = None,
) -> Evaluation:
    """Localize every query of a data set.

    The noise of a query depends on `seed` and its position only, not on the batch size, device or
    number of processes.

    Args:
        model: The localizer, in any mode.
        dataset: Usually a `MomentDataset`.
        num_inference_steps: Denoising steps. Defaults to the model's number.
        num_samples: Samples of each query that are averaged. Defaults to the model's number.
        eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM.
        ranking: How moments are read off the map, see `MapLocalizer.localize`. Defaults to the
            model's way.
        nms_threshold: Only for ranking by `nms`. Defaults to the model's.
        seed: Seed of the noise.
        top_n: Moments per query.
        batch_size: Queries localized at once.
        on_batch: Called after each batch with the number of its queries, for a progress bar.
        accelerator: The `accelerate.Accelerator` of several processes that all call this: each
            localizes a share of the queries, none twice, and all return the whole evaluation.

    Raises:
        ArgumentError: If the data set is empty, an argument is out of range, steps or samples are
            asked of a model that is not generative, there is an `nms_threshold` without `nms`, or
            scores are not finite, as damaged weights or features make them.
        ConfigError: If there is no such ranking.
    """
    began, metrics, answers = time.perf_counter(), LocalizationMetrics(), Answers()
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
    ):
        metrics.update(found.ranked, batch.moments, batch.num_moments)
        answers.update(batch, found, batch.moments, batch.num_moments)
        if on_batch is not None:
            on_batch(len(batch))
    metrics, answers = of_all_processes(accelerator, metrics, answers)
    return Evaluation(metrics.compute(), *answers.compute(began))
