"""How good ranked moments are: Rank n@m and mean IoU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmapdiff._checks import check_int, check_range, check_shape
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import RankedMoments, temporal_iou


def best_ious(predicted: Tensor, truth: Tensor, num_truths: Tensor | None = None) -> Tensor:
    """IoU of each predicted moment with the annotated moment that it fits best.

    Args:
        predicted: Ranked moments, in seconds.
        truth: Annotated moments, in seconds.
        num_truths: Annotated moments that count, for each query. All, if None.

    Shape:
        - predicted: (B, n, 2)
        - truth: (B, 2) or (B, M, 2)
        - num_truths: (B,)
        - returns: (B, n), float64

    Raises:
        ShapeError: If a shape does not fit.
    """
    who = "best_ious"
    sizes = check_shape(who, "predicted", predicted, "B n 2")
    if isinstance(truth, Tensor) and truth.dim() == 2:
        truth = truth[:, None]
    sizes = check_shape(who, "truth", truth, "B M 2", sizes)
    ious = temporal_iou(predicted.double()[:, :, None], truth.double()[:, None])
    if num_truths is not None:
        check_shape(who, "num_truths", num_truths, "B", sizes)
        counted = torch.arange(sizes["M"], device=truth.device) < num_truths[:, None]
        ious = ious.where(counted[:, None], 0)
    return ious.amax(dim=-1)


class LocalizationMetrics:
    """Rank n@m and mean IoU over a data set, gathered batch by batch.

    Rank n@m is the share of queries for which one of the first n moments has an IoU above m with an
    annotated one: strictly above, as in 2D-TAN and MS-2D-TAN. mIoU is the mean IoU of the first.

    Args:
        ranks: The n's.
        thresholds: The m's, in [0, 1).
        strict: Count IoU above m; at or above it, if False, as in moment_detr.

    Raises:
        ArgumentError: If a rank is below 1 or a threshold outside [0, 1].

    Example:
        >>> metrics = LocalizationMetrics(ranks=(1,), thresholds=(0.5,))
        >>> metrics.update(torch.tensor([[[0.0, 8.0]]]), torch.tensor([[0.0, 10.0]]))
        >>> metrics.compute()
        {'Rank1@0.5': 100.0, 'mIoU': 80.0}
    """

    def __init__(
        self,
        ranks: Sequence[int] = (1, 5),
        thresholds: Sequence[float] = (0.5, 0.7),
        *,
        strict: bool = True,
    ) -> None:
        who = "LocalizationMetrics"
        self.ranks = [check_int(who, "ranks", rank, at_least=1) for rank in ranks]
        self.thresholds = [check_range(who, "thresholds", m, 0, 1) for m in thresholds]
        self.strict = strict
        self._ious: list[Tensor] = []

    def update(
        self,
        predicted: Tensor | RankedMoments,
        truth: Tensor,
        num_truths: Tensor | None = None,
    ) -> None:
        """Add a batch of queries.

        Args:
            predicted: Ranked moments in seconds, at least as many as the largest rank; fewer
                count as they are.
            truth: Annotated moments, in seconds.
            num_truths: Annotated moments that count, for each query. All, if None.

        Shape:
            - predicted: (B, n, 2), or `RankedMoments`
            - truth: (B, 2) or (B, M, 2)
            - num_truths: (B,)

        Raises:
            ShapeError: If a shape does not fit.
        """
        moments = predicted.moments if isinstance(predicted, RankedMoments) else predicted
        ious = best_ious(moments, truth, num_truths)
        if isinstance(predicted, RankedMoments):
            # -1 is no hit at any threshold.
            ious = ious.masked_fill(~predicted.valid, -1)
        most = max(self.ranks)
        padded = ious.new_full((len(ious), most), -1)
        padded[:, : ious.shape[1]] = ious[:, :most]
        self._ious.append(padded.cpu())

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, in percent.

        Raises:
            ArgumentError: If there were no queries.
        """
        ious = torch.cat(self._ious) if self._ious else torch.empty(0, max(self.ranks))
        if not len(ious):
            raise ArgumentError("LocalizationMetrics: expected at least one query, got none.")
        results = {}
        for rank in self.ranks:
            best = ious[:, :rank].amax(dim=1)
            for threshold in self.thresholds:
                hits = best > threshold if self.strict else best >= threshold
                results[f"Rank{rank}@{threshold:g}"] = 100 * hits.double().mean().item()
        results["mIoU"] = 100 * ious[:, 0].clamp(min=0).mean().item()
        return results
