"""What Triton kernels on tiles of maps, (cells, channels), share."""

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
def valid_cells(
    mask, sample, batch_stride, row_stride, column_stride, cell, last,
    COLUMNS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    valid = cell < last
    if HAS_MASK:
        where = (
            mask + sample * batch_stride + cell_offsets(cell, row_stride, column_stride, COLUMNS)
        )
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
