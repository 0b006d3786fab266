"""Overlap of moments, and how much it counts as a hit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmapdiff._core.checks import check_range, message
from tmapdiff.errors import ArgumentError


def temporal_iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the intersection over union of moments, elementwise with broadcasting.

    Args:
        first: Start and end, in any unit.
        second: Start and end, in the same unit.

    Shape:
        - first: (..., 2)
        - second: (..., 2)
        - returns: (...), in [0, 1]; 0 where both moments are empty
    """
    # Differences of small integers would overflow, and those of unsigned ones wrap around.
    first = first if first.is_floating_point() else first.long()
    second = second if second.is_floating_point() else second.long()
    dtype = torch.promote_types(first.dtype, second.dtype)
    if dtype.itemsize < 4:  # sums of seconds overflow half precision
        return temporal_iou(first.float(), second.float()).to(dtype)
    start_1, end_1 = first.unbind(-1)
    start_2, end_2 = second.unbind(-1)
    overlap = (torch.minimum(end_1, end_2) - torch.maximum(start_1, start_2)).clamp(min=0)
    union = (end_1 - start_1) + (end_2 - start_2) - overlap
    return torch.where(union > 0, overlap / union.where(union > 0, 1), 0)


def soft_hits(iou: Tensor, thresholds: Sequence[float] = (0.5, 0.7), width: float = 0.05) -> Tensor:
    """Return how much a moment counts as a hit, averaged over the thresholds of Rank@m.

    Each threshold is a smooth logistic step, as IoU is only known to the precision of a cell.

    Args:
        iou: IoU with the true moment, in [0, 1].
        thresholds: IoUs above which a moment hits.
        width: IoU above a threshold at which its step reaches 0.73.

    Shape:
        - iou: (...)
        - returns: (...), in [0, 1]

    Raises:
        ArgumentError: If `thresholds` is not a list or is empty, a threshold is outside [0, 1], or
            `width` is not positive.
    """
    who = "soft_hits"
    if not isinstance(thresholds, list | tuple):
        expected = "thresholds to be a list or tuple"
        raise ArgumentError(message(who, expected, type(thresholds).__name__))
    if not thresholds:
        raise ArgumentError(message(who, "at least one threshold", "none"))
    checked = [check_range(who, "threshold", threshold, 0, 1) for threshold in thresholds]
    check_range(who, "width", width, 0, open_low=True)
    steps = [torch.sigmoid((iou - threshold) / width) for threshold in checked]
    return torch.stack(steps).mean(dim=0)
