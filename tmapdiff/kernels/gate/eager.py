"""The gate in torch operations with few passes over memory, and its own gradient."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels._derivatives import gradients_of
from tmapdiff.kernels.gate import reference
from tmapdiff.kernels.masking import fill_invalid_
from tmapdiff.kernels.memory_order import empty_like_maps, memory_order

# Values per piece: about four such tensors fit a core's L2 cache.
_PIECE = 2**17


class _Gate(torch.autograd.Function):
    """Compute `relu(features) * sigmoid(gate)`; see the operation."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, mask: Tensor | None, channels: int) -> Tensor:
        gate = wide[:, channels:].sigmoid()
        result = empty_like_maps(wide, channels)
        for features, through, gated in _pieces(wide[:, :channels], gate, result):
            torch.clamp(features, min=0, out=gated).mul_(through)
        ctx.save_for_backward(wide, gate, fill_invalid_(result, mask), mask)
        ctx.channels = channels
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wide, gate, result, mask = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = wide, mask, ctx.channels
            return gradients_of(reference.gate_features, inputs, ctx.needs_input_grad, gradient)
        of_wide = empty_like_maps(wide)
        for features, through, gated, above, of_features, of_gate in _pieces(
            wide[:, : ctx.channels],
            gate,
            result,
            gradient,
            of_wide[:, : ctx.channels],
            of_wide[:, ctx.channels :],
        ):
            # gated * (1 - s) = features * s * (1 - s), with s = through.
            weighted = gated * above
            if through.shape[1] == 1:
                weighted = weighted.sum(dim=1, keepdim=True)
            torch.mul(weighted, 1 - through, out=of_gate)
            torch.ops.aten.threshold_backward(above * through, features, 0, grad_input=of_features)
        return fill_invalid_(of_wide, mask), None, None


gate_features = _Gate.apply


def _pieces(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split maps into pieces that fit the cache, along the outermost dimension of the first."""
    outermost = memory_order(maps[0])[0]
    parts = -(-maps[0].numel() // _PIECE)
    step = max(-(-maps[0].shape[outermost] // max(parts, 1)), 1)
    return zip(*(one.split(step, dim=outermost) for one in maps), strict=True)
