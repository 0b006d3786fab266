"""The gate by torch's operations in few passes over memory, with a gradient of its own."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tmapdiff.kernels._launch import empty_like_maps, memory_order
from tmapdiff.kernels.masking import fill_invalid_

# Values of maps in a piece: some four such tensors fit into a core's second cache.
_PIECE = 2**17


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
        result = empty_like_maps(wide, channels)
        for features, through, gated in _pieces(wide[:, :channels], gate, result):
            torch.clamp(features, min=0, out=gated).mul_(through)
        ctx.save_for_backward(wide, gate, fill_invalid_(result, mask), mask)
        ctx.channels, ctx.has_bias = channels, bias is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wide, gate, result, mask = ctx.saved_tensors
        of_wide = empty_like_maps(wide)
        for features, through, gated, above, of_features, of_gate in _pieces(
            wide[:, : ctx.channels],
            gate,
            result,
            gradient,
            of_wide[:, : ctx.channels],
            of_wide[:, ctx.channels :],
        ):
            # What came through, times 1 - s, is the features times s * (1 - s).
            weighted = gated * above
            if through.shape[1] == 1:
                weighted = weighted.sum(dim=1, keepdim=True)
            torch.mul(weighted, 1 - through, out=of_gate)
            torch.ops.aten.threshold_backward(above * through, features, 0, grad_input=of_features)
        of_wide = fill_invalid_(of_wide, mask)
        of_bias = of_wide.sum((0, 2, 3)) if ctx.has_bias else None
        return of_wide, None, None, of_bias


def _pieces(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut maps into pieces that stay in the cache, along the outermost dimension of the first."""
    outermost = memory_order(maps[0])[0]
    parts = -(-maps[0].numel() // _PIECE)
    step = max(-(-maps[0].shape[outermost] // max(parts, 1)), 1)
    return zip(*(one.split(step, dim=outermost) for one in maps), strict=True)
