"""What an evaluation gives."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tmapdiff.data import (
    MomentBatch,
    Prediction,
)
from tmapdiff.maps import (
    RankedMoments,
)
from tmapdiff.metrics import best_ious
from tmapdiff.models import Localization

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Evaluation:
    """Metrics in percent, the predictions behind them, and how long they took.

    Attributes:
        metrics: `Rank1@0.5` and the like, and `mIoU`, in percent.
        predictions: One a query, in the data set's order.
        seconds: Wall time, reading of features included.
        confidence: Score of each query's best moment, (Q,).
        iou: IoU of each query's best moment with the annotated one, of DiDeMo with the annotators'
            consensus, (Q,): with `confidence` what `CalibrationMetrics` and `plot_calibration` ask
            for.
    """

    metrics: dict[str, float]
    predictions: tuple[Prediction, ...]
    seconds: float
    confidence: Tensor = field(compare=False)
    iou: Tensor = field(compare=False)

    @property
    def queries_per_second(self) -> float:
        """Queries localized a second."""
        return len(self.predictions) / self.seconds


class Collected:
    """Gathers answers, and how sure and how right the first of each query is.

    They stay on the device till the end: nothing waits for it.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int | str, str, str]] = []  # id, query and video
        self.ranked: list[RankedMoments] = []
        self.confidence: list[Tensor] = []
        self.iou: list[Tensor] = []

    def add(
        self,
        batch: MomentBatch,
        found: Localization,
        truth: Tensor,
        num_moments: Tensor | None = None,
    ) -> None:
        """Add a batch."""
        self.asked += zip(batch.qids, batch.queries, batch.video_ids, strict=True)
        self.ranked.append(found.ranked)
        self.confidence.append(found.confidence)
        self.iou.append(best_ious(found.ranked.moments[:, :1], truth, num_moments)[:, 0])

    def on_cpu(self) -> "Collected":
        """Copy it to the CPU."""
        copy = Collected()
        copy.asked = self.asked
        copy.ranked = [
            RankedMoments(one.moments.cpu(), one.scores.cpu(), one.valid.cpu())
            for one in self.ranked
        ]
        copy.confidence = [one.cpu() for one in self.confidence]
        copy.iou = [one.cpu() for one in self.iou]
        return copy

    @staticmethod
    def joined(parts: Iterable["Collected"]) -> "Collected":
        """Join those of several processes, in their order."""
        whole = Collected()
        for part in parts:
            for name, gathered in vars(whole).items():
                gathered += getattr(part, name)
        return whole

    def evaluation(self, metrics: dict[str, float], began: float) -> Evaluation:
        """Sum up; `began` is what `time.perf_counter` said at the start."""
        predictions = tuple(
            Prediction(qid, query, video_id, windows)
            for (qid, query, video_id), windows in zip(self.asked, self._windows(), strict=True)
        )
        confidence, iou = torch.cat(self.confidence).cpu(), torch.cat(self.iou).cpu()
        return Evaluation(metrics, predictions, time.perf_counter() - began, confidence, iou)

    def _windows(self) -> Iterator[tuple[tuple[float, float, float], ...]]:
        for ranked in self.ranked:
            rows = torch.cat([ranked.moments, ranked.scores[..., None]], dim=-1)
            for row, valid in zip(rows.tolist(), ranked.valid.tolist(), strict=True):
                yield tuple(
                    (start, end, score)
                    for (start, end, score), counts in zip(row, valid, strict=True)
                    if counts
                )


def joined_over_processes(accelerator: Any, *parts: Any) -> tuple[Any, ...]:
    """Join what processes gathered of their shares, which lie one after another."""
    if accelerator is None or accelerator.num_processes == 1:
        return parts
    from accelerate.utils import gather_object

    gathered = gather_object([tuple(part.on_cpu() for part in parts)])
    return tuple(
        type(parts[place]).joined([one[place] for one in gathered]) for place in range(len(parts))
    )
