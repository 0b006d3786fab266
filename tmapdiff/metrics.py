"""Metrics of predicted moments: Rank n@m, mean IoU, F1 of sets, and DiDeMo's metric."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmapdiff._core.checks import (
    check_bool,
    check_int,
    check_list,
    check_range,
    check_shape,
    message,
)
from tmapdiff._core.gathered import Gathered
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import RankedMoments, temporal_iou


def best_ious(predicted: Tensor, truth: Tensor, num_truths: Tensor | None = None) -> Tensor:
    """Compute the IoU of each predicted moment with its best-fitting annotated moment.

    Args:
        predicted: Ranked moments, in seconds.
        truth: Annotated moments, in seconds.
        num_truths: Number of annotated moments per query. Defaults to all M.

    Shape:
        - predicted: (B, n, 2)
        - truth: (B, 2) or (B, M, 2)
        - num_truths: (B,)
        - returns: (B, n), float64; 0 where there is no annotated moment

    Raises:
        ShapeError: If a shape does not fit.
    """
    predicted, _ = _predicted("best_ious", predicted)
    truth, counted = _annotated("best_ious", truth, num_truths, len(predicted))
    if not truth.shape[1]:
        return predicted.new_zeros(predicted.shape[:2], dtype=torch.float64)
    ious = temporal_iou(predicted.double()[:, :, None], truth.double()[:, None])
    return ious.where(counted[:, None], 0).amax(dim=-1)


def _predicted(who: str, predicted: Tensor | RankedMoments) -> tuple[Tensor, Tensor]:
    """Return predicted moments, (B, n, 2), and which of them count, (B, n)."""
    if isinstance(predicted, RankedMoments):
        return predicted.moments, predicted.valid
    check_shape(who, "predicted", predicted, "B n 2")
    return predicted, torch.ones_like(predicted[..., 0], dtype=torch.bool)


def _annotated(
    who: str, truth: Tensor, num_truths: Tensor | None, batch: int
) -> tuple[Tensor, Tensor]:
    """Return annotated moments, (B, M, 2), and which of them count, (B, M)."""
    if isinstance(truth, Tensor) and truth.dim() == 2:
        truth = truth[:, None]
    sizes = check_shape(who, "truth", truth, "B M 2", {"B": batch})
    if num_truths is None:
        return truth, torch.ones_like(truth[..., 0], dtype=torch.bool)
    check_shape(who, "num_truths", num_truths, "B", sizes)
    places = torch.arange(sizes["M"], device=num_truths.device)
    return truth, (places < num_truths[:, None]).to(truth.device)


class _MomentMetrics(Gathered):
    """Metrics of queries with an annotated moment; rows of other queries hold NaN."""

    def _answerable(self) -> Tensor:
        """Return the rows of the queries that have an annotated moment."""
        (rows,) = self._columns()
        rows = rows[~rows[:, 0].isnan()]
        if not len(rows):
            expected = "at least one query with an annotated moment"
            raise ArgumentError(message(type(self).__name__, expected, "none"))
        return rows


class LocalizationMetrics(_MomentMetrics):
    """Rank n@m and mean IoU over a data set, collected batch by batch.

    Rank n@m is the share of queries for which one of the first n moments has an IoU above m with an
    annotated one. mIoU is the mean IoU of the first moments. Queries without an annotated moment
    are excluded, as no answer could be right.

    Args:
        ranks: Values of n.
        thresholds: Values of m, in [0, 1).
        strict: Count IoUs strictly above m, as in 2D-TAN and MS-2D-TAN; if False, also those equal
            to m, as in moment_detr.

    Raises:
        ArgumentError: If there is no rank, one is below 1, a threshold is outside [0, 1], or
            `strict` is not True or False.

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
        super().__init__()
        who = "LocalizationMetrics"
        check_bool(who, "strict", strict)
        ranks = check_list(who, "ranks", ranks)
        thresholds = check_list(who, "thresholds", thresholds)
        check_int(who, "the number of ranks", len(ranks), at_least=1)
        self.ranks = [check_int(who, "ranks", rank, at_least=1) for rank in ranks]
        self.thresholds = [check_range(who, "thresholds", m, 0, 1) for m in thresholds]
        self.strict = strict

    def update(
        self,
        predicted: Tensor | RankedMoments,
        truth: Tensor,
        num_truths: Tensor | None = None,
    ) -> None:
        """Add a batch of queries, without synchronizing the device.

        Args:
            predicted: Ranked moments in seconds. With fewer than the largest rank, the others count
                as misses.
            truth: Annotated moments, in seconds.
            num_truths: Number of annotated moments per query. Defaults to all M.

        Shape:
            - predicted: (B, n, 2), or `RankedMoments`
            - truth: (B, 2) or (B, M, 2)
            - num_truths: (B,)

        Raises:
            ShapeError: If a shape does not fit.
        """
        moments, valid = _predicted("LocalizationMetrics", predicted)
        _, counted = _annotated("LocalizationMetrics", truth, num_truths, len(moments))
        # -1 is a miss at every threshold.
        ious = best_ious(moments, truth, num_truths).masked_fill(~valid, -1)
        most = max(self.ranks)
        padded = ious.new_full((len(ious), most), -1)
        padded[:, : ious.shape[1]] = ious[:, :most]
        padded.masked_fill_(~counted.any(dim=1, keepdim=True), torch.nan)
        self._rows.append((padded,))

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, in percent.

        Raises:
            ArgumentError: If there were no queries, or none with an annotated moment.
        """
        ious, results = self._answerable(), {}
        for rank in self.ranks:
            best = ious[:, :rank].amax(dim=1)
            for threshold in self.thresholds:
                hits = best > threshold if self.strict else best >= threshold
                results[f"Rank{rank}@{threshold:g}"] = 100 * hits.double().mean().item()
        results["mIoU"] = 100 * ious[:, 0].clamp(min=0).mean().item()
        return results


class SetMetrics(Gathered):
    """F1, count error and exact matches of answers that are sets of moments.

    Predicted and annotated moments with an IoU above the threshold are matched one to one, as many
    as possible. F1 is twice the number of matches over the number of moments in both sets, 1 if
    both are empty, averaged over queries. `Set-count-error` is the mean absolute difference of the
    counts. `Set-exact` is the share of sets with the right count in which all moments match at the
    first threshold. Queries without an annotated moment count, too.

    Args:
        thresholds: IoUs above which two moments match, in [0, 1).

    Raises:
        ArgumentError: If there is no threshold, or one is outside [0, 1].

    Example:
        >>> metrics = SetMetrics(thresholds=(0.5,))
        >>> predicted = torch.tensor([[[0.0, 8.0], [20.0, 30.0], [40.0, 42.0]]])
        >>> metrics.update(predicted, torch.tensor([[[0.0, 10.0]]]))
        >>> metrics.compute()
        {'Set-F1@0.5': 50.0, 'Set-count-error': 2.0, 'Set-exact': 0.0}
    """

    def __init__(self, thresholds: Sequence[float] = (0.5, 0.7)) -> None:
        super().__init__()
        who = "SetMetrics"
        thresholds = check_list(who, "thresholds", thresholds)
        check_int(who, "the number of thresholds", len(thresholds), at_least=1)
        self.thresholds = [check_range(who, "thresholds", m, 0, 1) for m in thresholds]

    def update(
        self, predicted: Tensor | RankedMoments, truth: Tensor, num_truths: Tensor | None = None
    ) -> None:
        """Add a batch of queries, with `predicted` sets of moments.

        `truth`, `num_truths`, shapes and errors are as in `LocalizationMetrics.update`.
        """
        moments, valid = _predicted("SetMetrics", predicted)
        truth, counted = _annotated("SetMetrics", truth, num_truths, len(moments))
        given, found = valid.sum(dim=1).cpu(), counted.sum(dim=1).cpu()
        ious = temporal_iou(moments.double()[:, :, None], truth.double()[:, None]).cpu()
        matched = [
            [count_matches((iou > threshold).tolist()) for threshold in self.thresholds]
            for iou in ious.masked_fill(~(valid[..., None] & counted[:, None]).cpu(), -1)
        ]
        counts = torch.tensor(matched, dtype=torch.float64).view(-1, len(self.thresholds))
        self._rows.append((counts, given, found))

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, in percent except for `Set-count-error`.

        Raises:
            ArgumentError: If there were no queries.
        """
        matched, given, found = self._columns()
        total = (given + found)[:, None]
        f1 = (2 * matched / total.clamp(min=1)).where(total > 0, 1)
        results = {
            f"Set-F1@{threshold:g}": 100 * one.item()
            for threshold, one in zip(self.thresholds, f1.mean(dim=0), strict=True)
        }
        results["Set-count-error"] = (given - found).abs().double().mean().item()
        results["Set-exact"] = 100 * (f1[:, 0] == 1).double().mean().item()
        return results


def count_matches(pairs: Sequence[Sequence[bool]]) -> int:
    """Return the size of a maximum matching of rows and columns.

    Uses augmenting paths: a row takes a free column, or one whose row finds another column.
    `pairs` holds, by row and column, whether the two may be matched.

    Source: Kuhn, doi 10.1002/nav.3800020109.
    """
    row_of: dict[int, int] = {}  # row of each matched column

    def finds(row: int, tried: set[int]) -> bool:
        for column, fits in enumerate(pairs[row]):
            if fits and column not in tried:
                tried.add(column)
                if column not in row_of or finds(row_of[column], tried):
                    row_of[column] = row
                    return True
        return False

    return sum(finds(row, set()) for row in range(len(pairs)))


def consensus_moments(moments: Tensor, num_moments: Tensor) -> Tensor:
    """Return the annotated moment with the highest mean IoU with the others.

    Ties go to the first; without annotated moments, returns 0 to 0.

    Shape:
        - moments: (B, M, 2)
        - num_moments: (B,)
        - returns: (B, 2)

    Raises:
        ShapeError: If a shape does not fit.
    """
    who = "consensus_moments"
    sizes = check_shape(who, "moments", moments, "B M 2")
    check_shape(who, "num_moments", num_moments, "B", sizes)
    if not sizes["M"]:
        return moments.new_zeros(sizes["B"], 2)
    counted = torch.arange(sizes["M"], device=moments.device) < num_moments[:, None]
    ious = temporal_iou(moments.double()[:, :, None], moments.double()[:, None])
    agreement = ious.where(counted[:, None], 0).sum(-1).masked_fill(~counted, -1)
    best = agreement.argmax(dim=1)
    picked = moments[torch.arange(len(moments), device=moments.device), best]
    return picked.where(counted.any(dim=1, keepdim=True), 0)


class DiDeMoMetrics(_MomentMetrics):
    """DiDeMo's official metric: Rank@1, Rank@5 and mean IoU against several annotators.

    All moments of a video are ranked. The rank of a query is the mean rank of the annotated
    moments, over the three annotators with the best ranks; Rank@n is the share of queries with a
    rank of at most n. mIoU is the mean IoU of the first moment with the three best-fitting
    annotators. Moments are compared as whole segments. Queries without an annotated moment are
    excluded.

    Source: Hendricks et al., arXiv 1708.01641, section 5.
    """

    annotators = 3  # number of best annotators that count
    segment_seconds = 5.0

    def update(
        self, predicted: Tensor | RankedMoments, truth: Tensor, num_truths: Tensor | None = None
    ) -> None:
        """Add a batch of queries; shapes are as in `LocalizationMetrics.update`.

        Args:
            predicted: All moments of the video in seconds, best first: 21 for six segments.
            truth: Moment of each annotator in seconds, including repeated ones.
            num_truths: Annotators of each query. Defaults to M.

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If `predicted` does not include every annotated moment.
        """
        who = "DiDeMoMetrics"
        moments, valid = _predicted(who, predicted)
        truth, counted = _annotated(who, truth, num_truths, len(moments))
        counted = counted.cpu()
        ranked, marked = self._segments(moments)[:, None], self._segments(truth)[:, :, None]
        same = (ranked == marked).all(-1) & valid.cpu()[:, None]
        lacking = counted & ~same.any(-1)
        if bool(lacking.any()):
            row, index = lacking.nonzero()[0].tolist()
            start, end = truth[row, index].tolist()
            got = f"one without {start:g} to {end:g} s in row {row}"
            raise ArgumentError(message(who, "a ranking of all moments", got))
        ranks = (same.int().argmax(-1) + 1).double().masked_fill(~counted, torch.inf)
        ious = temporal_iou(ranked[:, 0, :1].double(), marked[:, :, 0].double())
        ious = ious.masked_fill(~counted, -torch.inf).sort(dim=1, descending=True).values
        best = torch.stack([ranks.sort(dim=1).values, ious], dim=1)[:, :, : self.annotators]
        # There may be fewer than three annotators.
        self._rows.append((best.where(best.isfinite(), torch.nan).nanmean(dim=2),))

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, in percent.

        Raises:
            ArgumentError: If there were no queries, or none with an annotated moment.
        """
        ranks, ious = self._answerable().T.contiguous()
        return {
            "Rank@1": 100 * (ranks <= 1).double().mean().item(),
            "Rank@5": 100 * (ranks <= 5).double().mean().item(),
            "mIoU": 100 * ious.mean().item(),
        }

    def _segments(self, moments: Tensor) -> Tensor:
        return (moments.double() / self.segment_seconds).round().long().cpu()
