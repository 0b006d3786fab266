"""What Triton kernels on tiles of maps, (cells, channels), share."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def valid_cells(mask, sample, mask_batch, mask_cell, cell, last, HAS_MASK: tl.constexpr):
    valid = cell < last
    if HAS_MASK:
        where = mask + sample * mask_batch + cell * mask_cell
        valid = valid & (tl.load(where, mask=valid, other=0) != 0)
    return valid


@triton.jit
def load(pointer, offsets, inside):
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_tile(pointer, offsets, inside, within, SKIP: tl.constexpr):
    # Where channels are neighbours in memory, invalid cells are not read. Where cells are, that
    # would split each load into single elements.
    if SKIP:
        return load(pointer, offsets, inside)
    return tl.where(inside, load(pointer, offsets, within), 0.0)


def bytes_and_strides(mask: Tensor | None) -> tuple[Tensor | None, tuple[int, int]]:
    """Mask as bytes, and its strides over samples and cells."""
    if mask is None:
        return None, (0, 0)
    cells = mask.flatten(-2).view(torch.uint8)
    return cells, (cells.stride(0) if cells.dim() == 2 else 0, cells.stride(-1))
