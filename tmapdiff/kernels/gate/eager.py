"""The gate by torch's operations in few passes over memory, with a gradient of its own."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tmapdiff.kernels._launch import empty_like_maps
from tmapdiff.kernels.masking import fill_invalid_


def gate_features(
    convolved: Tensor, mask: Tensor | None, channels: int, bias: Tensor | None
) -> Tensor:
    """Compute `relu(features) * sigmoid(gate)`; see the operation."""
    result: Tensor = _Gate.apply(convolved, mask, channels, bias)
    return result


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, convolved: Tensor, mask: Tensor | None, channels: int, bias: Tensor | None
    ) -> Tensor:
        wide = convolved if bias is None else convolved + bias[:, None, None]
        gate = wide[:, channels:].sigmoid()
        ctx.save_for_backward(wide, gate, mask)
        ctx.channels, ctx.has_bias = channels, bias is not None
        return fill_invalid_(wide[:, :channels].clamp(min=0).mul_(gate), mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wide, gate, mask = ctx.saved_tensors
        features = wide[:, : ctx.channels]
        of_wide = empty_like_maps(wide)
        of_features, of_gate = of_wide[:, : ctx.channels], of_wide[:, ctx.channels :]
        weighted = features.clamp(min=0).mul_(gradient)
        if gate.shape[1] == 1:
            weighted = weighted.sum(dim=1, keepdim=True)
        torch.mul(weighted, gate * (1 - gate), out=of_gate)
        torch.ops.aten.threshold_backward(gradient * gate, features, 0, grad_input=of_features)
        of_wide = fill_invalid_(of_wide, mask)
        of_bias = of_wide.sum((0, 2, 3)) if ctx.has_bias else None
        return of_wide, None, None, of_bias
