"""Running a localizer over a data set."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from tmapdiff.evaluation._localizing import SamplingOptions, localized
from tmapdiff.evaluation.results import Collected, Evaluation, joined_over_processes
from tmapdiff.metrics import LocalizationMetrics
from tmapdiff.models import MapLocalizer, Ranking

if TYPE_CHECKING:
    pass


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
    accelerator: Any = None,
) -> Evaluation:
    """Localize every query of a data set.

    The noise of a query depends on `seed` and its position only, not on the batch size, device or
    number of processes.

    Args:
        model: The localizer, in any mode.
        dataset: Usually a `MomentDataset`.
        num_inference_steps: Denoising steps; the model's number, if None.
        num_samples: Samples of each query that are averaged; the model's number, if None.
        eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM.
        ranking: How moments are read off the map, see `MapLocalizer.localize`; the model's way, if
            None.
        nms_threshold: Of ranking by `nms`; the model's, if None.
        seed: Seed of the noise.
        top_n: Moments a query.
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
    metrics, judged = LocalizationMetrics(), Collected()
    began = time.perf_counter()
    sampling = SamplingOptions(num_inference_steps, num_samples, eta, seed)
    options = {"top_n": top_n, "ranking": ranking, "nms_threshold": nms_threshold}
    for batch, found in localized(model, dataset, batch_size, sampling, options, accelerator):
        metrics.update(found.ranked, batch.moments, batch.num_moments)
        judged.add(batch, found, batch.moments, batch.num_moments)
        if on_batch is not None:
            on_batch(len(batch))
    metrics, judged = joined_over_processes(accelerator, metrics, judged)
    return judged.evaluation(metrics.compute(), began)
