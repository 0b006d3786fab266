"""Stylization in torch operations with few passes over memory, and its own gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tmapdiff.kernels._derivatives import gradients_of
from tmapdiff.kernels.masking import fill_invalid_, inverse_deviation
from tmapdiff.kernels.stylization import reference


class _Stylize(torch.autograd.Function):
    """Compute `silu(norm(x) * (1 + scale) + shift)` with group norm. Derivation: README.md."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        mask: Tensor | None,
        num_groups: int,
    ) -> Tensor:
        count = _count(x, mask, num_groups)
        # Not contiguous(), which would change the memory order.
        centered = fill_invalid_(x.clone(), mask)
        mean = _per_channel(_per_group(centered.sum((2, 3)), num_groups) / count, x)
        centered = fill_invalid_(centered.sub_(mean), mask)
        variance = _per_group(centered.square().sum((2, 3)), num_groups) / count
        rstd = _per_channel(inverse_deviation(variance), x)
        ctx.save_for_backward(x, mean, rstd, scale, shift, mask)
        ctx.num_groups, ctx.count = num_groups, count
        slope = rstd * _cells(1 + scale)
        styled = torch.addcmul(_cells(shift), centered, slope, out=centered)
        return fill_invalid_(F.silu(styled, inplace=True), mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean_of_x, rstd, scale, shift, mask = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = x, scale, shift, mask, ctx.num_groups
            return gradients_of(reference.stylize, inputs, ctx.needs_input_grad, gradient)
        centered = fill_invalid_(x - mean_of_x, mask)
        factor = _cells(1 + scale)
        styled = torch.addcmul(_cells(shift), centered, rstd * factor)
        # In the memory order of the maps.
        torch.ops.aten.silu_backward.grad_input(gradient, styled, grad_input=styled)
        of_styled = fill_invalid_(styled, mask)
        of_shift = of_styled.sum((2, 3))
        of_scale = (of_styled * centered).sum((2, 3)) * rstd[..., 0, 0]

        def mean(of_style: Tensor) -> Tensor:
            total = _per_group(factor[..., 0, 0] * of_style, ctx.num_groups)
            return _per_channel(total / ctx.count, centered)

        of_x = of_styled.mul_(rstd * factor)
        of_x.addcmul_(centered, rstd.square() * mean(of_scale), value=-1)
        of_x = fill_invalid_(of_x.sub_(rstd * mean(of_shift)), mask)
        return of_x, of_scale, of_shift, None, None


stylize = _Stylize.apply


def _count(x: Tensor, mask: Tensor | None, num_groups: int) -> Tensor:
    """Count the valid values of each group, at least 1: (B, 1), or (1, 1) for a shared mask."""
    cells = x.new_tensor([x.shape[2] * x.shape[3]]) if mask is None else mask.sum((-2, -1)).to(x)
    return (cells.reshape(-1, 1) * (x.shape[1] // num_groups)).clamp(min=1)


def _per_group(of_channels: Tensor, num_groups: int) -> Tensor:
    """Sum over the channels of each group: (B, C) to (B, groups)."""
    return of_channels.unflatten(1, (num_groups, -1)).sum(dim=2)


def _per_channel(of_groups: Tensor, like: Tensor) -> Tensor:
    """Repeat values of groups for each of their channels: (B, groups) to (B, C, 1, 1)."""
    return _cells(of_groups.repeat_interleave(like.shape[1] // of_groups.shape[1], dim=1))


def _cells(of_channels: Tensor) -> Tensor:
    return of_channels[..., None, None]
