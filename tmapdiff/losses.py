"""Training objectives: targets, activations and losses of maps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tmapdiff._core.checks import check_choice, check_shape

HUBER_DELTA = 0.1  # error, in IoU, above which the Huber loss is linear


@dataclass(frozen=True)
class MapObjective:
    """A training objective.

    Attributes:
        name: Its name in configurations.
        target: IoU in [0, 1] -> target map in [0, 1], which is noised and learned.
        activation: Scores of the decoder -> target map.
        cell_loss: (scores, target map) -> loss of each cell.
    """

    name: str
    target: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    cell_loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Compute the mean loss over the valid cells of all maps.

        Args:
            scores: Predictions of the decoder.
            target: Target map.
            mask: Which cells are valid.

        Shape:
            - scores, target: (B, cells)
            - mask: (cells,) or (B, cells), bool
            - returns: ()

        Raises:
            ShapeError: If a shape does not fit.
        """
        who = f"MapObjective {self.name}"
        sizes = check_shape(who, "scores", scores, "B cells")
        check_shape(who, "target", target, "B cells", sizes)
        batched = isinstance(mask, Tensor) and mask.dim() == 2
        check_shape(who, "mask", mask, "B cells" if batched else "cells", sizes)
        scores = scores.to(torch.promote_types(scores.dtype, target.dtype))
        # Fill before the loss rather than weight it, as invalid cells may hold NaN.
        scores, target = scores.masked_fill(~mask, 0), target.masked_fill(~mask, 0)
        losses = self.cell_loss(scores, target).masked_fill(~mask, 0)
        # Half precision would overflow.
        total = losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32))
        return (total / mask.expand_as(scores).sum().clamp(min=1)).to(losses.dtype)


def rescale_iou(iou: Tensor, low: float = 0.5, high: float = 1.0) -> Tensor:
    """Stretch IoU from [`low`, `high`] to [0, 1], and clip values outside.

    Shape:
        - iou, returns: any

    Source: 2D-TAN, arXiv 1912.03590, Eq. 6.
    """
    return ((iou - low) / (high - low)).clamp(0, 1)


def identity(values: Tensor) -> Tensor:
    """Return `values` unchanged."""
    return values


def _squared_error(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).square()


def _absolute_error(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).abs()


def _huber(scores: Tensor, target: Tensor) -> Tensor:
    # Divided by delta, so that it has the slope of the absolute error.
    return F.huber_loss(scores, target, reduction="none", delta=HUBER_DELTA) / HUBER_DELTA


def _cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, target, reduction="none")


_OBJECTIVES = {
    f"{loss}-{values}": MapObjective(f"{loss}-{values}", target, activation, cell_loss)
    for loss, activation, cell_loss in (
        ("mse", identity, _squared_error),
        ("l1", identity, _absolute_error),
        ("huber", identity, _huber),
        ("bce", torch.sigmoid, _cross_entropy),
    )
    for values, target in (("full", identity), ("rescaled", rescale_iou))
}

OBJECTIVES = tuple(_OBJECTIVES)


def get_objective(name: str) -> MapObjective:
    """Return the training objective called `name`.

    A name combines a loss (`mse`, `l1`, `huber`, `bce`) and a target: `full` is the IoU itself,
    `rescaled` the IoU stretched from [0.5, 1] to [0, 1], as in MS-2D-TAN. `bce-rescaled`,
    `bce-full` and `mse-full` are the rows of Table 4.

    Raises:
        ConfigError: If there is no objective of that name.

    Source: Zhang et al., arXiv 2401.08232, Table 4.
    """
    check_choice("get_objective", "objective", name, OBJECTIVES)
    return _OBJECTIVES[name]
