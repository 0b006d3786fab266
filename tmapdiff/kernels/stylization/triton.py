"""Stylization in Triton: statistics in float32, no atomics; invalid cells are never read.

A tile is (cells, channels). If a group of a sample fits a tile (`WHOLE`), one program handles it
and reads memory once. Otherwise several programs share the group, in two launches (`_group_part*`,
then `_group*`).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tmapdiff.kernels._derivatives import gradients_of
from tmapdiff.kernels._launch import (
    ceil_div,
    cell_strides,
    mask_bytes,
    power_of_2,
    tile_constants,
    within_reach,
)
from tmapdiff.kernels._tiles import load, load_tile, tile_offsets, valid_tile
from tmapdiff.kernels.masking import EPS
from tmapdiff.kernels.memory_order import empty_like_maps
from tmapdiff.kernels.stylization import reference

# Elements of a tile: for a whole group, forward and backward (two tiles), and for a part of one.
_WHOLE, _WHOLE_BACKWARD, _PART = 32768, 16384, 4096
# Target number of programs: about eight per multiprocessor of an H100 or H200.
_PROGRAMS = 1024
# With fewer rows than this, one program per row leaves multiprocessors idle. Rows are then whole
# only if they are so small that a second launch would cost more.
_FEW_ROWS, _SMALL = 128, 8192


# SiLU


@triton.jit
def _inverse_deviation(variance, eps):
    # NaN, not 0, if the variance overflowed.
    return tl.rsqrt(variance + eps) + 0.0 * variance


@triton.jit
def _silu(u):
    return u * tl.sigmoid(u)


@triton.jit
def _silu_slope(u):
    gate = tl.sigmoid(u)
    return gate * (1.0 + u * (1.0 - gate))


# Group norm


@triton.jit
def _moments(values, valid, inside, WIDTH: tl.constexpr):
    # Count, mean and sum of squared deviations.
    count = tl.sum(valid.to(tl.float32)) * WIDTH
    mean = tl.sum(values) / tl.maximum(count, 1.0)
    centered = tl.where(inside, values - mean, 0.0)
    return count, mean, tl.sum(centered * centered)


@triton.jit
def _group_part(
    x, mask, parts,
    cells, groups, splits, part_cells,
    x_batch, x_channel, x_row, x_column,
    mask_batch,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    sample, group = (row // groups).to(tl.int64), row % groups
    lane = tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
    first = split * part_cells
    last = tl.minimum(first + part_cells, cells)
    count, mean, squares = 0.0, 0.0, 0.0
    for start in range(first, last, CELLS):
        cell = start + tl.arange(0, CELLS)
        valid, inside, within = valid_tile(mask, sample * mask_batch, cell, last, own, HAS_MASK)
        offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
        values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
        tile_count, tile_mean, tile_squares = _moments(values, valid, inside, WIDTH)
        # Chan et al. (1983): merges the moments of two sets without cancellation.
        share = tile_count / tl.maximum(count + tile_count, 1.0)
        apart = tile_mean - mean
        squares += tile_squares + apart * apart * count * share
        mean += apart * share
        count += tile_count
    where = parts + tl.program_id(0).to(tl.int64) * 3
    tl.store(where, mean)
    tl.store(where + 1, squares)
    tl.store(where + 2, count)


@triton.jit
def _group(
    x, scale, shift, mask, parts, y, statistics,
    cells, groups, splits, tiles, eps,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel, mask_batch,
    y_batch, y_channel, y_row, y_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr, WHOLE: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    sample, group = (row // groups).to(tl.int64), row % groups
    cell, lane = tile * CELLS + tl.arange(0, CELLS), tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
    valid, inside, within = valid_tile(mask, sample * mask_batch, cell, cells, own, HAS_MASK)
    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
    if WHOLE:
        count, mean, squares = _moments(values, valid, inside, WIDTH)
    else:
        split = tl.arange(0, SPLITS)
        where = parts + (row.to(tl.int64) * splits + split) * 3
        part_means = tl.load(where, mask=split < splits, other=0.0)
        part_squares = tl.load(where + 1, mask=split < splits, other=0.0)
        part_counts = tl.load(where + 2, mask=split < splits, other=0.0)
        count = tl.sum(part_counts)
        mean = tl.sum(part_counts * part_means) / tl.maximum(count, 1.0)
        apart = part_means - mean
        squares = tl.sum(part_squares + part_counts * apart * apart)
    rstd = _inverse_deviation(squares / tl.maximum(count, 1.0), eps)
    if tile == 0:
        out = statistics + row.to(tl.int64) * 3
        tl.store(out, mean)
        tl.store(out + 1, rstd)
        tl.store(out + 2, count)

    normalized = tl.where(inside, (values - mean) * rstd, 0.0)
    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    styled = _silu(normalized * factor[None, :] + offset[None, :])
    offsets = tile_offsets(cell, channel, y_channel, y_row, y_column, COLUMNS)
    tl.store(y + sample * y_batch + offsets, tl.where(inside, styled, 0.0), mask=within)


@triton.jit
def _group_part_backward(
    dy, x, scale, shift, mask, statistics, parts,
    cells, groups, splits, part_cells,
    dy_batch, dy_channel, dy_row, dy_column,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel, mask_batch,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    sample, group = (row // groups).to(tl.int64), row % groups
    lane = tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
    where = statistics + row.to(tl.int64) * 3
    mean, rstd = tl.load(where), tl.load(where + 1)
    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    sums = tl.zeros([CHANNELS], tl.float32)
    products = tl.zeros([CHANNELS], tl.float32)
    first = split * part_cells
    last = tl.minimum(first + part_cells, cells)
    for start in range(first, last, CELLS):
        cell = start + tl.arange(0, CELLS)
        _, inside, within = valid_tile(mask, sample * mask_batch, cell, last, own, HAS_MASK)
        offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
        values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
        normalized = tl.where(inside, (values - mean) * rstd, 0.0)
        slope = _silu_slope(normalized * factor[None, :] + offset[None, :])
        offsets = tile_offsets(cell, channel, dy_channel, dy_row, dy_column, COLUMNS)
        du = load_tile(dy + sample * dy_batch, offsets, inside, within, SKIP) * slope
        sums += tl.sum(du, axis=0)
        products += tl.sum(du * normalized, axis=0)
    where = parts + tl.program_id(0).to(tl.int64) * (2 * WIDTH)
    tl.store(where + lane, sums, mask=own)
    tl.store(where + WIDTH + lane, products, mask=own)


@triton.jit
def _group_backward(
    dy, x, scale, shift, mask, statistics, parts, dx, dscale, dshift,
    cells, groups, splits, tiles,
    dy_batch, dy_channel, dy_row, dy_column,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel, mask_batch,
    dx_batch, dx_channel, dx_row, dx_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr, WHOLE: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    sample, group = (row // groups).to(tl.int64), row % groups
    cell, lane = tile * CELLS + tl.arange(0, CELLS), tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
    _, inside, within = valid_tile(mask, sample * mask_batch, cell, cells, own, HAS_MASK)
    where = statistics + row.to(tl.int64) * 3
    mean, rstd, count = tl.load(where), tl.load(where + 1), tl.load(where + 2)

    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
    normalized = tl.where(inside, (values - mean) * rstd, 0.0)
    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    slope = _silu_slope(normalized * factor[None, :] + offset[None, :])
    offsets = tile_offsets(cell, channel, dy_channel, dy_row, dy_column, COLUMNS)
    du = load_tile(dy + sample * dy_batch, offsets, inside, within, SKIP) * slope
    if WHOLE:
        sums = tl.sum(du, axis=0)
        products = tl.sum(du * normalized, axis=0)
    else:
        sums = tl.zeros([CHANNELS], tl.float32)
        products = tl.zeros([CHANNELS], tl.float32)
        for split in range(splits):
            where = parts + (row.to(tl.int64) * splits + split) * (2 * WIDTH)
            sums += tl.load(where + lane, mask=own, other=0.0)
            products += tl.load(where + WIDTH + lane, mask=own, other=0.0)
    if tile == 0:
        out = sample * groups * WIDTH + channel
        tl.store(dshift + out, sums, mask=own)
        tl.store(dscale + out, products, mask=own)

    mean_gradient = tl.sum(sums * factor) / tl.maximum(count, 1.0)
    mean_product = tl.sum(products * factor) / tl.maximum(count, 1.0)
    result = rstd * (du * factor[None, :] - mean_gradient - normalized * mean_product)
    offsets = tile_offsets(cell, channel, dx_channel, dx_row, dx_column, COLUMNS)
    tl.store(dx + sample * dx_batch + offsets, tl.where(inside, result, 0.0), mask=within)


# Launches


class _Tiling(NamedTuple):
    """How rows of (cells, width channels) are divided into tiles and among programs."""

    width: int
    cells: int  # per tile
    channels: int  # per tile: `width` rounded up to a power of 2
    whole: bool  # whether one tile holds a row
    tiles: int  # per row
    splits: int  # programs per row, if each loops over several tiles
    part_cells: int  # per such program

    def constants(self, x: Tensor, mask: Tensor | None, columns: int) -> dict[str, Any]:
        """Return the compile-time constants of kernels."""
        constants = tile_constants(x, mask, columns, self.cells, self.channels)
        return {"WIDTH": self.width, **constants}


def _tile(rows: int, width: int, cells: int, most: int) -> _Tiling:
    """Divide `rows` rows; a row of up to `most` elements is one tile, unless rows are few."""
    channels, all_cells = power_of_2(width), power_of_2(cells)
    if all_cells * channels <= (most if rows >= _FEW_ROWS else min(most, _SMALL)):
        return _Tiling(width, all_cells, channels, True, 1, 1, cells)
    tile_cells = min(max(_PART // channels, 1), all_cells)
    tiles = ceil_div(cells, tile_cells)
    part_cells = ceil_div(tiles, min(tiles, ceil_div(_PROGRAMS, rows))) * tile_cells
    splits = ceil_div(cells, part_cells)
    return _Tiling(width, tile_cells, channels, False, tiles, splits, part_cells)


# The operator, which torch can differentiate and compile


@torch.library.custom_op("tmapdiff::stylize", mutates_args=())
def _stylize_op(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """Compute the result, and the mean, rstd and count of each group, (B, groups, 3)."""
    x = within_reach(x)
    y, statistics = _empty(x, scale, shift, mask, num_groups)
    if not x.numel():
        return y, statistics
    columns, (x_strides, y_strides) = cell_strides(x, y)
    valid, mask_batch = mask_bytes(mask)
    cells, rows, inputs = x.shape[2] * x.shape[3], len(x) * num_groups, (x, scale, shift, valid)
    strides = *x_strides, *scale.stride(), *shift.stride(), mask_batch, *y_strides
    tiling = _tile(rows, x.shape[1] // num_groups, cells, _WHOLE)
    constants, parts = tiling.constants(x, mask, columns), None
    with torch.cuda.device_of(x):
        if not tiling.whole:
            parts = statistics.new_empty((rows, tiling.splits, 3))
            _group_part[(rows * tiling.splits,)](
                x, valid, parts, cells, num_groups, tiling.splits, tiling.part_cells,
                *x_strides, mask_batch, **constants,
            )  # fmt: skip
        _group[(rows * tiling.tiles,)](
            *inputs, parts, y, statistics, cells, num_groups, tiling.splits, tiling.tiles, EPS,
            *strides, **constants, WHOLE=tiling.whole, SPLITS=power_of_2(tiling.splits),
        )  # fmt: skip
    return y, statistics


@_stylize_op.register_fake
def _empty(
    x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, num_groups: int, *_: Any
) -> tuple[Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], num_groups, 3), dtype=torch.float32)
    return empty_like_maps(within_reach(x)), statistics


@torch.library.custom_op("tmapdiff::stylize_backward", mutates_args=())
def _stylize_backward_op(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    statistics: Tensor,
    num_groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = within_reach(dy), within_reach(x)
    gradients = dx, dscale, dshift = _empty_gradients(dy, x, scale, shift)
    if not x.numel():
        return dx, dscale.zero_(), dshift.zero_()
    columns, (dy_strides, x_strides, dx_strides) = cell_strides(dy, x, dx)
    valid, mask_batch = mask_bytes(mask)
    cells, rows, inputs = x.shape[2] * x.shape[3], len(x) * num_groups, (dy, x, scale, shift, valid)
    strides = *dy_strides, *x_strides, *scale.stride(), *shift.stride(), mask_batch
    tiling = _tile(rows, x.shape[1] // num_groups, cells, _WHOLE_BACKWARD)
    constants = tiling.constants(x, mask, columns)
    splits = 0 if tiling.whole else tiling.splits
    parts = x.new_empty((rows, splits, 2, tiling.width), dtype=torch.float32)
    with torch.cuda.device_of(x):
        if not tiling.whole:
            _group_part_backward[(rows * tiling.splits,)](
                *inputs, statistics, parts, cells, num_groups, tiling.splits, tiling.part_cells,
                *strides, **constants,
            )  # fmt: skip
        _group_backward[(rows * tiling.tiles,)](
            *inputs, statistics, parts, *gradients, cells, num_groups, tiling.splits, tiling.tiles,
            *strides, *dx_strides, **constants, WHOLE=tiling.whole,
        )  # fmt: skip
    return gradients


@_stylize_backward_op.register_fake
def _empty_gradients(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    styles = scale.new_empty(scale.shape), shift.new_empty(shift.shape)
    return empty_like_maps(within_reach(x)), *styles


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_groups = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 5
    if torch.is_grad_enabled():
        given = *ctx.saved_tensors[:-1], ctx.num_groups
        return gradients_of(reference.stylize, given, ctx.needs_input_grad, dy)
    found = _stylize_backward_op(dy, *ctx.saved_tensors, ctx.num_groups)
    return *found, None, None


_stylize_op.register_autograd(_gradients, setup_context=_save)


def stylize(*given: Any) -> Tensor:
    """Compute the operation in Triton."""
    return _stylize_op(*given)[0]
