"""The styled residual in pieces that stay in the cache, with a gradient of its own."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tmapdiff.kernels._launch import empty_like_maps
from tmapdiff.kernels.masking import CellLists, cells_of

# Values of maps in a piece: some four such tensors fit into the second cache of two cores.
_PIECE = 2**18


def add_styled(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    num_groups: int,
    eps: float,
) -> Tensor:
    """Compute `x + linear(stylize(x))`; see the operation.

    Derivation: README.md. Keeps nothing for the gradient but the inputs and the statistics.
    """
    result: Tensor = _AddStyled.apply(x, scale, shift, weight, bias, mask, num_groups, eps)
    return result


class _AddStyled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        num_groups: int,
        eps: float,
    ) -> Tensor:
        cells = _Cells(x, mask)
        count = max(cells.num_valid * (x.shape[1] // num_groups), 1)
        result = empty_like_maps(x)
        mean, rstd = (x.new_empty(scale.shape) for _ in range(2))
        factor = 1 + scale
        for samples, (piece, centred, styled) in cells.pieces(x, buffers=3):
            cells.take(x, samples, out=piece)
            mean[samples] = _over_groups(piece.sum(0), num_groups) / count
            torch.sub(piece, mean[samples], out=centred)
            torch.mul(centred, centred, out=styled)
            variance = _over_groups(styled.sum(0), num_groups) / count
            rstd[samples] = (variance + eps).rsqrt()
            slope = rstd[samples] * factor[samples]
            torch.addcmul(shift[samples], centred, slope, out=styled)
            F.silu(styled, inplace=True)
            torch.addmm(bias, _rows(styled), weight.T, out=_rows(centred))
            cells.put(result, samples, piece.add_(centred))
        ctx.save_for_backward(x, scale, shift, weight, mean, rstd, mask)
        ctx.num_groups, ctx.count = num_groups, count
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, mean, rstd, mask = ctx.saved_tensors
        cells = _Cells(x, mask)
        of_x = empty_like_maps(x)
        of_scale, of_shift = torch.empty_like(mean), torch.empty_like(mean)
        of_weight, of_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        factor = 1 + scale
        for samples, buffers in cells.pieces(x, buffers=5):
            above, centred, styled, of_styled, scratch = buffers
            cells.take(gradient, samples, out=above)
            cells.take(x, samples, out=centred).sub_(mean[samples])
            slope = rstd[samples] * factor[samples]
            torch.addcmul(shift[samples], centred, slope, out=styled)
            torch.ops.aten.silu.out(styled, out=scratch)
            of_weight.addmm_(_rows(above).T, _rows(scratch))
            of_bias += _rows(above).sum(0)
            torch.mm(_rows(above), weight, out=_rows(of_styled))
            torch.ops.aten.silu_backward.grad_input(of_styled, styled, grad_input=of_styled)
            of_shift[samples] = of_styled.sum(0)
            torch.mul(of_styled, centred, out=scratch)
            of_scale[samples] = scratch.sum(0) * rstd[samples]

            def mean_of(of_style: Tensor, part: slice = samples) -> Tensor:
                return _over_groups(factor[part] * of_style[part], ctx.num_groups) / ctx.count

            above.addcmul_(of_styled, slope)
            above.addcmul_(centred, rstd[samples].square() * mean_of(of_scale), value=-1)
            cells.put(of_x, samples, above.sub_(rstd[samples] * mean_of(of_shift)))
        return of_x, of_scale, of_shift, of_weight, of_bias, None, None, None


class _Cells:
    """Takes the valid cells of some samples out of maps, and puts them back.

    Args:
        x: Maps, whose memory order decides the order of cells.
        mask: Which cells are valid, (N_k, A). All, if None.
    """

    def __init__(self, x: Tensor, mask: Tensor | None) -> None:
        self.batch, self.channels, rows, columns = x.shape
        self.outer = (2, 3) if x.stride(2) >= x.stride(3) else (3, 2)
        self.num_valid = rows * columns
        self.cells: CellLists | None = None
        if mask is not None:
            self.cells = cells_of(mask if self.outer == (2, 3) else mask.T)
            outermost, inner = self.cells.valid
            self.valid = outermost * x.shape[self.outer[1]] + inner
            self.num_valid = len(self.valid)

    def pieces(self, like: Tensor, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """Divide the samples into pieces, and give room for some copies of each.

        The room is the same for all pieces: fresh memory costs the CPU more than arithmetic.
        """
        size = max(self.num_valid * self.channels, 1)
        samples = min(max(_PIECE // size, 1), self.batch)
        room = like.new_empty(buffers, samples * self.num_valid * self.channels)
        for first in range(0, self.batch, max(samples, 1)):
            count = min(samples, self.batch - first)
            shape = (self.num_valid, count, self.channels)
            views = [one[: math.prod(shape)].view(shape) for one in room]
            yield slice(first, first + count), views

    def take(self, maps: Tensor, samples: slice, out: Tensor) -> Tensor:
        """Copy the valid cells of samples: (valid, samples, C)."""
        cells = self._of(maps, samples)
        if self.cells is None:
            return out.copy_(cells.flatten(0, 1))
        return torch.index_select(cells.flatten(0, 1), 0, self.valid, out=out)

    def put(self, maps: Tensor, samples: slice, values: Tensor) -> None:
        """Write the valid cells of samples, and zeros into the others."""
        cells = self._of(maps, samples)
        if self.cells is None:
            cells.copy_(values.view_as(cells))
        else:
            cells[self.cells.valid] = values
            cells[self.cells.invalid] = 0

    def _of(self, maps: Tensor, samples: slice) -> Tensor:
        return maps[samples].permute(*self.outer, 0, 1)


def _over_groups(of_channels: Tensor, num_groups: int) -> Tensor:
    """Give each channel the sum over its group: (samples, C)."""
    grouped = of_channels.unflatten(1, (num_groups, -1))
    return grouped.sum(2, keepdim=True).expand_as(grouped).flatten(1)


def _rows(piece: Tensor) -> Tensor:
    return piece.view(-1, piece.shape[-1])
