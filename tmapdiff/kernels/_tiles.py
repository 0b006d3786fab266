"""Shared helpers of Triton kernels on tiles of maps, (cells, channels)."""

import triton
import triton.language as tl


@triton.jit
def cell_offsets(cell, row_stride, column_stride, COLUMNS: tl.constexpr):
    if COLUMNS == 1:
        return cell * row_stride
    return cell // COLUMNS * row_stride + cell % COLUMNS * column_stride


@triton.jit
def tile_offsets(
    cell, channel, channel_stride, row_stride, column_stride, COLUMNS: tl.constexpr
):  # fmt: skip
    rows = cell_offsets(cell, row_stride, column_stride, COLUMNS)
    return rows[:, None] + channel[None, :] * channel_stride


@triton.jit
def valid_cells(mask, first, cell, last, HAS_MASK: tl.constexpr):
    # A sample's cells are contiguous in the mask, starting at `first`.
    valid = cell < last
    if HAS_MASK:
        valid = valid & (tl.load(mask + first + cell, mask=valid, other=0) != 0)
    return valid


@triton.jit
def valid_tile(mask, first, cell, last, own, HAS_MASK: tl.constexpr):
    # Valid cells, valid elements of the tile, and existing elements of the tile.
    valid = valid_cells(mask, first, cell, last, HAS_MASK)
    return valid, valid[:, None] & own[None, :], (cell < last)[:, None] & own[None, :]


@triton.jit
def load(pointer, offsets, inside):
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_tile(pointer, offsets, inside, within, SKIP: tl.constexpr):
    # Skip invalid cells only if channels are contiguous; if cells are, that would split each load
    # into single elements.
    if SKIP:
        return load(pointer, offsets, inside)
    return tl.where(inside, load(pointer, offsets, within), 0.0)
