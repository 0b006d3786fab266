"""How good ranked moments are: Rank n@m and mean IoU, and DiDeMo's own metric."""

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
    """IoU of each predicted moment with the annotated moment that it fits best.

    Args:
        predicted: Ranked moments, in seconds.
        truth: Annotated moments, in seconds.
        num_truths: Annotated moments that count, per query. Defaults to all.

    Shape:
        - predicted: (B, n, 2)
        - truth: (B, 2) or (B, M, 2)
        - num_truths: (B,)
        - returns: (B, n), float64; 0 where there is no annotated moment

    Raises:
        ShapeError: If a shape does not fit.
    """
    who = "best_ious"
    sizes = check_shape(who, "predicted", predicted, "B n 2")
    if isinstance(truth, Tensor) and truth.dim() == 2:
        truth = truth[:, None]
    sizes = check_shape(who, "truth", truth, "B M 2", sizes)
    if not sizes["M"]:
        return predicted.new_zeros(predicted.shape[:2], dtype=torch.float64)
    ious = temporal_iou(predicted.double()[:, :, None], truth.double()[:, None])
    if num_truths is not None:
        check_shape(who, "num_truths", num_truths, "B", sizes)
        counted = torch.arange(sizes["M"], device=truth.device) < num_truths[:, None]
        ious = ious.where(counted[:, None], 0)
    return ious.amax(dim=-1)


class LocalizationMetrics(Gathered):
    """Rank n@m and mean IoU over a data set, gathered batch by batch.

    Rank n@m is the share of queries for which one of the first n moments has an IoU above m with an
    annotated one: strictly above, as in 2D-TAN and MS-2D-TAN. mIoU is the mean IoU of the first.
    Queries without an annotated moment are left out: no answer could be right. `reset` forgets all
    queries so far.

    Args:
        ranks: The n's.
        thresholds: The m's, in [0, 1).
        strict: Count IoU above m; at or above it, if False, as in moment_detr.

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
        """Add a batch of queries, without waiting for their device.

        Args:
            predicted: Ranked moments in seconds, at least as many as the largest rank; fewer
                count as they are.
            truth: Annotated moments, in seconds.
            num_truths: Annotated moments that count, per query. Defaults to all.

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
        if truth.dim() == 3 and not truth.shape[1]:
            padded.fill_(torch.nan)
        elif num_truths is not None:
            padded.masked_fill_((num_truths < 1)[:, None], torch.nan)
        self._rows.append((padded,))

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, in percent.

        Raises:
            ArgumentError: If there were no queries, or none with an annotated moment.
        """
        (ious,) = self._columns()
        ious = ious[~ious[:, 0].isnan()]
        if not len(ious):
            expected = "at least one query with an annotated moment"
            raise ArgumentError(message("LocalizationMetrics", expected, "none"))
        results = {}
        for rank in self.ranks:
            best = ious[:, :rank].amax(dim=1)
            for threshold in self.thresholds:
                hits = best > threshold if self.strict else best >= threshold
                results[f"Rank{rank}@{threshold:g}"] = 100 * hits.double().mean().item()
        results["mIoU"] = 100 * ious[:, 0].clamp(min=0).mean().item()
        return results


class SetMetrics(Gathered):
    """F1 of answers that are sets of moments, how far their count is off, and how many are exact.

    Predicted and annotated moments are matched one to one, as many as can be, where their IoU is
    above the threshold. F1 is twice their number over that of all moments of both, 1 if there are
    none; the mean over queries. `Set-count-error` is the mean absolute difference of the counts, in
    moments. `Set-exact` is the share of sets of the right count that match at the first threshold.
    All queries count, also those without an annotated moment.

    Args:
        thresholds: IoU above which two moments match, in [0, 1).

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
        """Add a batch of queries.

        Args:
            predicted: The moments of each set, in seconds.
            truth: Annotated moments, in seconds.
            num_truths: Annotated moments that count, per query. Defaults to all.

        Shape:
            - predicted: (B, n, 2), or `RankedMoments`
            - truth: (B, 2) or (B, M, 2)
            - num_truths: (B,)

        Raises:
            ShapeError: If a shape does not fit.
        """
        who = "SetMetrics"
        moments = predicted.moments if isinstance(predicted, RankedMoments) else predicted
        sizes = check_shape(who, "predicted", moments, "B n 2")
        if isinstance(truth, Tensor) and truth.dim() == 2:
            truth = truth[:, None]
        sizes = check_shape(who, "truth", truth, "B M 2", sizes)
        given = torch.full((sizes["B"],), sizes["n"])
        found = torch.full((sizes["B"],), sizes["M"])
        if isinstance(predicted, RankedMoments):
            given = predicted.num_moments.cpu()
        if num_truths is not None:
            check_shape(who, "num_truths", num_truths, "B", sizes)
            found = num_truths.cpu().long()
        ious = temporal_iou(moments.double()[:, :, None], truth.double()[:, None]).cpu()
        rows = zip(ious, given.tolist(), found.tolist(), strict=True)
        matched = [
            [count_matches((iou[:n, :m] > threshold).tolist()) for threshold in self.thresholds]
            for iou, n, m in rows
        ]
        counts = torch.tensor(matched, dtype=torch.float64).view(-1, len(self.thresholds))
        self._rows.append((counts, given, found))

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, all but `Set-count-error` in percent.

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
    """Count the pairs of a largest one-to-one matching of rows and columns.

    By augmenting paths: a row takes a column that is free, or whose row finds another one. `pairs`
    tells whether a row may be matched with a column.

    Source: Kuhn, doi 10.1002/nav.3800020109.
    """
    row_of: dict[int, int] = {}  # of each column that is matched

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
    """Moment of the annotator who agrees best with the others: of highest mean IoU with them.

    The first of them, if several are as good; where there is no moment, 0 to 0.

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
    return moments[torch.arange(len(moments), device=moments.device), best]


class DiDeMoMetrics(Gathered):
    """DiDeMo's official metric: Rank@1, Rank@5 and mean IoU against several annotators.

    All moments of a video are ranked. The rank of a query is the mean rank of the moments of its
    three best served annotators; Rank@n is the share of queries whose rank is at most n. mIoU is
    the mean IoU of the first moment with the three annotators that it fits best. Moments are of
    whole segments, and compared as such. Queries without an annotated moment are left out.

    Args:
        segment_seconds: Seconds a segment lasts.

    Raises:
        ArgumentError: If `segment_seconds` is not positive.

    Source: Hendricks et al., arXiv 1708.01641, section 5.
    """

    annotators = 3  # that count

    def __init__(self, segment_seconds: float = 5.0) -> None:
        super().__init__()
        check_range("DiDeMoMetrics", "segment_seconds", segment_seconds, 0, open_low=True)
        self.segment_seconds = segment_seconds

    def update(
        self, predicted: Tensor | RankedMoments, truth: Tensor, num_truths: Tensor | None = None
    ) -> None:
        """Add a batch of queries.

        Args:
            predicted: All moments of the video in seconds, best first; of six segments they are 21.
            truth: Moments of the annotators in seconds, equal ones as often as they were given.
            num_truths: Annotators of each query. Defaults to M.

        Shape:
            - predicted: (B, n, 2), or `RankedMoments`
            - truth: (B, M, 2)
            - num_truths: (B,)

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If an annotated moment is not among the predicted ones: not all were
                ranked.
        """
        who = "DiDeMoMetrics"
        moments = predicted.moments if isinstance(predicted, RankedMoments) else predicted
        sizes = check_shape(who, "predicted", moments, "B n 2")
        sizes = check_shape(who, "truth", truth, "B M 2", sizes)
        counted = torch.ones(sizes["B"], sizes["M"], dtype=torch.bool)
        if num_truths is not None:
            check_shape(who, "num_truths", num_truths, "B", sizes)
            counted = torch.arange(sizes["M"]) < num_truths.cpu()[:, None]
        ranked, marked = self._segments(moments)[:, None], self._segments(truth)[:, :, None]
        same = (ranked == marked).all(-1)
        if isinstance(predicted, RankedMoments):
            same &= predicted.valid.cpu()[:, None]
        lacking = counted & ~same.any(-1)
        if bool(lacking.any()):
            row, index = lacking.nonzero()[0].tolist()
            start, end = truth[row, index].tolist()
            raise ArgumentError(
                f"{who}: expected a ranking of all moments, "
                f"got none of {start:g} to {end:g} s in row {row}."
            )
        ranks = (same.int().argmax(-1) + 1).double().masked_fill(~counted, torch.inf)
        ious = temporal_iou(ranked[:, 0, :1].double(), marked[:, :, 0].double())
        best_ranks = ranks.sort(dim=1).values[:, : self.annotators]
        best_ious = ious.masked_fill(~counted, -torch.inf).sort(dim=1, descending=True).values
        best_ious = best_ious[:, : self.annotators]
        self._rows.append((_mean_of_finite(best_ranks), _mean_of_finite(best_ious)))

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, in percent.

        Raises:
            ArgumentError: If there were no queries, or none with an annotated moment.
        """
        ranks, ious = self._columns()
        there = ~ranks.isnan()
        if not bool(there.any()):
            expected = "at least one query with an annotated moment"
            raise ArgumentError(message("DiDeMoMetrics", expected, "none"))
        ranks, ious = ranks[there], ious[there]
        return {
            "Rank@1": 100 * (ranks <= 1).double().mean().item(),
            "Rank@5": 100 * (ranks <= 5).double().mean().item(),
            "mIoU": 100 * ious.mean().item(),
        }

    def _segments(self, moments: Tensor) -> Tensor:
        return (moments.double() / self.segment_seconds).round().long().cpu()


def _mean_of_finite(values: Tensor) -> Tensor:
    """Mean of each row over what is finite: there may be fewer annotators than count."""
    return values.where(values.isfinite(), torch.nan).nanmean(dim=1)
