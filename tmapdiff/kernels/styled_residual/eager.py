"""The styled residual in pieces that fit the cache, with its own gradient."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tmapdiff.kernels._derivatives import gradients_of
from tmapdiff.kernels.masking import EPS, CellLists, cells_of
from tmapdiff.kernels.memory_order import empty_like_maps
from tmapdiff.kernels.styled_residual import reference

# Values per piece: about four such tensors fit the L2 caches of two cores.
_PIECE = 2**18


class _AddStyled(torch.autograd.Function):
    """Compute `x + linear(stylize(x))`; see the operation. Derivation: README.md."""

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
    ) -> Tensor:
        cells = _Cells(x, mask)
        average = cells.averaging(num_groups)
        result = empty_like_maps(x)
        mean, rstd = (x.new_empty(scale.shape) for _ in range(2))
        for piece in cells.pieces(3, mean, rstd, 1 + scale, shift):
            values, centered, styled = piece.buffers
            own_mean, own_rstd, factor, own_shift = piece.of_samples
            cells.take(x, piece, out=values)
            torch.mm(values.sum(0), average, out=own_mean)
            torch.sub(values, own_mean, out=centered)
            torch.mul(centered, centered, out=styled)
            variance = torch.mm(styled.sum(0), average)
            torch.rsqrt(variance.add_(EPS), out=own_rstd)
            torch.addcmul(own_shift, centered, own_rstd * factor, out=styled)
            F.silu(styled, inplace=True)
            _rows(values.add_(bias)).addmm_(_rows(styled), weight.T)
            cells.put(result, piece)
        ctx.save_for_backward(x, scale, shift, weight, bias, mask, mean, rstd)
        ctx.num_groups = num_groups
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs.append(ctx.num_groups)
            return gradients_of(reference.add_styled, inputs, ctx.needs_input_grad, gradient)
        x, scale, shift, weight, _, mask = inputs
        cells = _Cells(x, mask)
        average = cells.averaging(ctx.num_groups)
        of_x = empty_like_maps(x)
        of_scale, of_shift = torch.empty_like(mean), torch.empty_like(mean)
        of_weight, of_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        factor = 1 + scale
        given = mean, rstd, factor, rstd * factor, shift, of_scale, of_shift
        for piece in cells.pieces(5, *given):
            above, centered, styled, of_styled, scratch = piece.buffers
            own_mean, own_rstd, own_factor, slope, own_shift, *of_style = piece.of_samples
            of_own_scale, of_own_shift = of_style
            cells.take(gradient, piece, out=above)
            cells.take(x, piece, out=centered).sub_(own_mean)
            torch.addcmul(own_shift, centered, slope, out=styled)
            torch.ops.aten.silu.out(styled, out=scratch)
            rows = _rows(above)
            of_weight.addmm_(rows.T, _rows(scratch))
            of_bias.add_(rows.sum(0))
            torch.mm(rows, weight, out=_rows(of_styled))
            torch.ops.aten.silu_backward.grad_input(of_styled, styled, grad_input=of_styled)
            torch.sum(of_styled, 0, out=of_own_shift)
            torch.mul(of_styled, centered, out=scratch)
            torch.mul(scratch.sum(0), own_rstd, out=of_own_scale)

            mean_gradient = torch.mm(own_factor * of_own_shift, average).mul_(own_rstd)
            mean_product = torch.mm(own_factor * of_own_scale, average).mul_(own_rstd.square())
            above.addcmul_(of_styled, slope)
            above.addcmul_(centered, mean_product, value=-1).sub_(mean_gradient)
            cells.put(of_x, piece)
        return of_x, of_scale, of_shift, of_weight, of_bias, None, None


add_styled = _AddStyled.apply


class _Piece(NamedTuple):
    """Some samples, and buffers for copies of their valid cells."""

    samples: slice
    of_samples: list[Tensor]  # their rows of per-sample tensors
    buffers: tuple[Tensor, ...]  # (valid, samples, C) each
    first: Tensor  # first buffer, and a last row for invalid cells: (valid + 1, samples, C)


class _Cells:
    """Copies the valid cells of samples out of maps, in the memory order of `x`, and back."""

    def __init__(self, x: Tensor, mask: Tensor | None) -> None:
        self.like = x
        self.batch, self.channels, rows, columns = x.shape
        self.outer = (2, 3) if x.stride(2) >= x.stride(3) else (3, 2)
        self.num_valid = rows * columns
        self.cells: CellLists | None = None
        if mask is not None:
            self.cells = cells_of(mask if self.outer == (2, 3) else mask.T)
            self.num_valid = len(self.cells.valid)

    def averaging(self, num_groups: int) -> Tensor:
        """Return a matrix that turns sums over cells into group means for each channel."""
        return _averaging(self.channels, num_groups, self.num_valid, self.like.dtype)

    def pieces(self, buffers: int, *of_samples: Tensor) -> Iterator[_Piece]:
        """Divide the samples into pieces that share buffers, as fresh memory costs a CPU time."""
        most = max(min(_PIECE // max(self.num_valid * self.channels, 1), self.batch), 1)
        rows = self.num_valid + 1
        room = self.like.new_empty(buffers, rows, most, self.channels)
        of_valid: tuple[Tensor, ...] = ()
        for first in range(0, self.batch, most):
            count = min(most, self.batch - first)
            if count < most:  # the last piece
                room = room.flatten(1)[:, : rows * count * self.channels]
                room = room.view(buffers, rows, count, self.channels)
            if first == 0 or count < most:
                room[0, -1] = 0
                of_valid = room[:, :-1].unbind()
            samples = slice(first, first + count)
            own = list(of_samples) if count == self.batch else [one[samples] for one in of_samples]
            yield _Piece(samples, own, of_valid, room[0])

    def take(self, maps: Tensor, piece: _Piece, out: Tensor) -> Tensor:
        """Copy the valid cells of a piece's samples: (valid, samples, C)."""
        cells = self._of(maps, piece).flatten(0, 1)
        if self.cells is None:
            return out.copy_(cells)
        return torch.index_select(cells, 0, self.cells.valid, out=out)

    def put(self, maps: Tensor, piece: _Piece) -> None:
        """Write the first buffer into the valid cells, and zeros into the others."""
        cells = self._of(maps, piece)
        if self.cells is None:
            cells.copy_(piece.buffers[0].view_as(cells))
        elif cells.stride(0) == cells.shape[1] * cells.stride(1):
            # Gathering from the buffer is three times as fast as scattering to the cells.
            torch.index_select(piece.first, 0, self.cells.sources, out=cells.flatten(0, 1))
        else:
            cells.copy_(piece.first[self.cells.sources].view_as(cells))

    def _of(self, maps: Tensor, piece: _Piece) -> Tensor:
        return maps[piece.samples].permute(*self.outer, 0, 1)


@lru_cache(maxsize=32)
def _averaging(channels: int, num_groups: int, num_valid: int, dtype: torch.dtype) -> Tensor:
    width = channels // num_groups
    group = torch.arange(channels, device="cpu") // width
    return (group[:, None] == group).to(dtype) / max(num_valid * width, 1)


def _rows(piece: Tensor) -> Tensor:
    return piece.view(-1, piece.shape[-1])
