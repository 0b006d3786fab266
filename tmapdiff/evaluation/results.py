"""What an evaluation returns."""

from dataclasses import dataclass, field

from torch import Tensor

from tmapdiff.data import Prediction


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
