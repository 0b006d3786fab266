"""Styled residual: stylization, its linear layer and the sum with its input, fused."""

import torch
from torch import Tensor

from tmapdiff._core.checks import check_shape
from tmapdiff.kernels import _launch
from tmapdiff.kernels._dispatch import choose
from tmapdiff.kernels.masking import check_styles, of_all_samples
from tmapdiff.kernels.styled_residual import eager, reference


def add_styled(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    *,
    num_groups: int,
    backend: str | None = None,
) -> Tensor:
    """Add the output of a stylization block to its input: `x + linear(stylize(x))`.

    The result has the memory order of `x`.

    Args:
        x: Map features.
        scale: Scale of each normalized channel, minus 1.
        shift: Shift of each channel.
        weight: Weight of the linear layer.
        bias: Bias of the linear layer.
        mask: Which cells are valid. Defaults to all.
        num_groups: Groups of channels, each normalized by the mean and variance of its valid cells;
            must divide the channels.
        backend: `eager` or `reference`. Defaults to eager, if it can run.

    Shape:
        - x: (B, C, N_k, A)
        - scale, shift: (B, C)
        - weight: (C, C)
        - bias: (C,)
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, C, N_k, A), 0 in invalid cells

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `num_groups` is below 1.
        ConfigError: If `num_groups` does not divide the channels, or `backend` cannot run.

    Source: Zhang et al., arXiv 2401.08232, Eq. 6, as a residual.
    """
    who = "add_styled"
    sizes = check_styles(who, x, scale, shift, mask, num_groups)
    check_shape(who, "weight", weight, "C C", sizes)
    check_shape(who, "bias", bias, "C", sizes)
    mask = of_all_samples(mask)
    not_eager = why_not_eager(x, scale, shift, weight, bias, mask=mask)
    chosen = choose("styled_residual", {"eager": not_eager, "reference": None}, backend)
    run = eager.add_styled if chosen == "eager" else reference.add_styled
    return run(x, scale, shift, weight, bias, mask, num_groups)


def why_not_eager(x: Tensor, *others: Tensor, mask: Tensor | None) -> str | None:
    """Return why `add_styled` cannot run eagerly on `x`, `others` and `mask`, or None if it can."""
    mask = of_all_samples(mask)
    if mask is not None and mask.dim() == 3:
        return "each sample has its own mask"
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return "autocast chooses their dtype"
    return _launch.why_not_eager(x, *others)
