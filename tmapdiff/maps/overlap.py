"""Overlap of moments."""

import torch
from torch import Tensor


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
    start_1, end_1 = first.unbind(-1)
    start_2, end_2 = second.unbind(-1)
    overlap = (torch.minimum(end_1, end_2) - torch.maximum(start_1, start_2)).clamp(min=0)
    union = (end_1 - start_1) + (end_2 - start_2) - overlap
    return torch.where(union > 0, overlap / union.where(union > 0, 1), 0)
