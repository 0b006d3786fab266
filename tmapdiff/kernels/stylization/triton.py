"""Stylization in Triton: statistics in float32, no atomics, invalid cells never read.

A tile is (cells, channels). Where a group of a sample fits into one, a program holds it and reads
memory once (`_group_whole*`); else several programs share the group, in two launches
(`_group_part*`, `_group_join*`). With layer norm, a tile holds all channels of its cells.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tmapdiff.kernels._derivatives import gradients_of
from tmapdiff.kernels._launch import (
    as_bytes,
    ceil_div,
    cell_strides,
    empty_like_maps,
    power_of_2,
    warps_for,
    within_reach,
)
from tmapdiff.kernels._tiles import load, load_tile, tile_offsets, valid_cells
from tmapdiff.kernels.stylization import reference

# Elements of a tile: of a whole group, forward and backward (which holds two), and of a part of it.
_WHOLE, _WHOLE_BACKWARD, _PART = 32768, 16384, 4096
# Programs to aim at: about eight for each multiprocessor of an H100 or H200.
_PROGRAMS = 1024
# With fewer rows than this, programs that hold whole ones leave multiprocessors idle: only small
# rows, where the second launch would cost more, are whole then.
_FEW_ROWS, _SMALL = 128, 8192


# SiLU


@triton.jit
def _inverse_deviation(variance, eps):
    # NaN of a variance that overflowed: its root would make zeros of the values.
    return tl.rsqrt(variance + eps) + 0.0 * variance


@triton.jit
def _silu(u):
    return u * tl.sigmoid(u)


@triton.jit
def _silu_slope(u):
    gate = tl.sigmoid(u)
    return gate * (1.0 + u * (1.0 - gate))


# Group norm, a program for each group


@triton.jit
def _group_whole(
    x, scale, shift, mask, y, statistics,
    cells, groups, eps,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel,
    mask_batch, mask_row, mask_column,
    y_batch, y_channel, y_row, y_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    cell, lane = tl.arange(0, CELLS), tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
    valid = valid_cells(
        mask, sample, mask_batch, mask_row, mask_column, cell, cells, COLUMNS, HAS_MASK
    )
    inside = valid[:, None] & own[None, :]
    within = (cell < cells)[:, None] & own[None, :]

    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
    count = tl.sum(valid.to(tl.float32)) * WIDTH
    divisor = tl.maximum(count, 1.0)
    mean = tl.sum(values) / divisor
    centred = tl.where(inside, values - mean, 0.0)
    rstd = _inverse_deviation(tl.sum(centred * centred) / divisor, eps)

    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    styled = _silu(centred * rstd * factor[None, :] + offset[None, :])
    offsets = tile_offsets(cell, channel, y_channel, y_row, y_column, COLUMNS)
    tl.store(y + sample * y_batch + offsets, tl.where(inside, styled, 0.0), mask=within)
    where = statistics + tl.program_id(0).to(tl.int64) * 3
    tl.store(where, mean)
    tl.store(where + 1, rstd)
    tl.store(where + 2, count)


@triton.jit
def _group_whole_backward(
    dy, x, scale, shift, mask, statistics, dx, dscale, dshift,
    cells, groups,
    dy_batch, dy_channel, dy_row, dy_column,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel,
    mask_batch, mask_row, mask_column,
    dx_batch, dx_channel, dx_row, dx_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    cell, lane = tl.arange(0, CELLS), tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
    valid = valid_cells(
        mask, sample, mask_batch, mask_row, mask_column, cell, cells, COLUMNS, HAS_MASK
    )
    inside = valid[:, None] & own[None, :]
    within = (cell < cells)[:, None] & own[None, :]
    where = statistics + tl.program_id(0).to(tl.int64) * 3
    mean, rstd, count = tl.load(where), tl.load(where + 1), tl.load(where + 2)
    divisor = tl.maximum(count, 1.0)

    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
    normalized = tl.where(inside, (values - mean) * rstd, 0.0)
    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    offsets = tile_offsets(cell, channel, dy_channel, dy_row, dy_column, COLUMNS)
    slope = _silu_slope(normalized * factor[None, :] + offset[None, :])
    du = load_tile(dy + sample * dy_batch, offsets, inside, within, SKIP) * slope

    sums = tl.sum(du, axis=0)
    products = tl.sum(du * normalized, axis=0)
    out = sample * groups * WIDTH + channel
    tl.store(dshift + out, sums, mask=own)
    tl.store(dscale + out, products, mask=own)

    mean_gradient = tl.sum(sums * factor) / divisor
    mean_product = tl.sum(products * factor) / divisor
    result = rstd * (du * factor[None, :] - mean_gradient - normalized * mean_product)
    offsets = tile_offsets(cell, channel, dx_channel, dx_row, dx_column, COLUMNS)
    tl.store(dx + sample * dx_batch + offsets, tl.where(inside, result, 0.0), mask=within)


# Group norm, several programs for each group


@triton.jit
def _group_part(
    x, mask, parts,
    cells, groups, splits, part_cells,
    x_batch, x_channel, x_row, x_column,
    mask_batch, mask_row, mask_column,
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
        valid = valid_cells(
            mask, sample, mask_batch, mask_row, mask_column, cell, last, COLUMNS, HAS_MASK
        )
        inside = valid[:, None] & own[None, :]
        within = (cell < last)[:, None] & own[None, :]
        offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
        values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
        tile_count = tl.sum(valid.to(tl.float32)) * WIDTH
        tile_mean = tl.sum(values) / tl.maximum(tile_count, 1.0)
        centred = tl.where(inside, values - tile_mean, 0.0)
        # Chan et al. (1983): joins the moments of two sets without cancellation.
        share = tile_count / tl.maximum(count + tile_count, 1.0)
        apart = tile_mean - mean
        squares += tl.sum(centred * centred) + apart * apart * count * share
        mean += apart * share
        count += tile_count
    where = parts + tl.program_id(0).to(tl.int64) * 3
    tl.store(where, mean)
    tl.store(where + 1, squares)
    tl.store(where + 2, count)


@triton.jit
def _group_join(
    x, scale, shift, mask, parts, y, statistics,
    cells, groups, splits, tiles, eps,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel,
    mask_batch, mask_row, mask_column,
    y_batch, y_channel, y_row, y_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    sample, group = (row // groups).to(tl.int64), row % groups
    split = tl.arange(0, SPLITS)
    where = parts + (row.to(tl.int64) * splits + split) * 3
    part_means = tl.load(where, mask=split < splits, other=0.0)
    part_squares = tl.load(where + 1, mask=split < splits, other=0.0)
    part_counts = tl.load(where + 2, mask=split < splits, other=0.0)
    count = tl.sum(part_counts)
    divisor = tl.maximum(count, 1.0)
    mean = tl.sum(part_counts * part_means) / divisor
    apart = part_means - mean
    rstd = _inverse_deviation(tl.sum(part_squares + part_counts * apart * apart) / divisor, eps)
    if tile == 0:
        out = statistics + row.to(tl.int64) * 3
        tl.store(out, mean)
        tl.store(out + 1, rstd)
        tl.store(out + 2, count)

    cell, lane = tile * CELLS + tl.arange(0, CELLS), tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
    valid = valid_cells(
        mask, sample, mask_batch, mask_row, mask_column, cell, cells, COLUMNS, HAS_MASK
    )
    inside = valid[:, None] & own[None, :]
    within = (cell < cells)[:, None] & own[None, :]
    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
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
    scale_batch, scale_channel, shift_batch, shift_channel,
    mask_batch, mask_row, mask_column,
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
        valid = valid_cells(
            mask, sample, mask_batch, mask_row, mask_column, cell, last, COLUMNS, HAS_MASK
        )
        inside = valid[:, None] & own[None, :]
        within = (cell < last)[:, None] & own[None, :]
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
def _group_join_backward(
    dy, x, scale, shift, mask, statistics, parts, dx, dscale, dshift,
    cells, groups, splits, tiles,
    dy_batch, dy_channel, dy_row, dy_column,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel,
    mask_batch, mask_row, mask_column,
    dx_batch, dx_channel, dx_row, dx_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    sample, group = (row // groups).to(tl.int64), row % groups
    lane = tl.arange(0, CHANNELS)
    channel, own = group * WIDTH + lane, lane < WIDTH
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

    where = statistics + row.to(tl.int64) * 3
    mean, rstd, count = tl.load(where), tl.load(where + 1), tl.load(where + 2)
    divisor = tl.maximum(count, 1.0)
    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    mean_gradient = tl.sum(sums * factor) / divisor
    mean_product = tl.sum(products * factor) / divisor

    cell = tile * CELLS + tl.arange(0, CELLS)
    valid = valid_cells(
        mask, sample, mask_batch, mask_row, mask_column, cell, cells, COLUMNS, HAS_MASK
    )
    inside = valid[:, None] & own[None, :]
    within = (cell < cells)[:, None] & own[None, :]
    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
    normalized = tl.where(inside, (values - mean) * rstd, 0.0)
    slope = _silu_slope(normalized * factor[None, :] + offset[None, :])
    offsets = tile_offsets(cell, channel, dy_channel, dy_row, dy_column, COLUMNS)
    du = load_tile(dy + sample * dy_batch, offsets, inside, within, SKIP) * slope
    result = rstd * (du * factor[None, :] - mean_gradient - normalized * mean_product)
    offsets = tile_offsets(cell, channel, dx_channel, dx_row, dx_column, COLUMNS)
    tl.store(dx + sample * dx_batch + offsets, tl.where(inside, result, 0.0), mask=within)


# Layer norm


@triton.jit
def _layer(
    x, scale, shift, mask, y,
    cells, tiles, eps,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel,
    mask_batch, mask_row, mask_column,
    y_batch, y_channel, y_row, y_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    cell, channel = tile * CELLS + tl.arange(0, CELLS), tl.arange(0, CHANNELS)
    own = channel < WIDTH
    valid = valid_cells(
        mask, sample, mask_batch, mask_row, mask_column, cell, cells, COLUMNS, HAS_MASK
    )
    inside = valid[:, None] & own[None, :]
    within = (cell < cells)[:, None] & own[None, :]
    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
    mean = tl.sum(values, axis=1) / WIDTH
    centred = tl.where(inside, values - mean[:, None], 0.0)
    rstd = _inverse_deviation(tl.sum(centred * centred, axis=1) / WIDTH, eps)
    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    styled = _silu(centred * rstd[:, None] * factor[None, :] + offset[None, :])
    offsets = tile_offsets(cell, channel, y_channel, y_row, y_column, COLUMNS)
    tl.store(y + sample * y_batch + offsets, tl.where(inside, styled, 0.0), mask=within)


@triton.jit
def _layer_backward(
    dy, x, scale, shift, mask, parts, dx,
    cells, splits, part_cells, eps,
    dy_batch, dy_channel, dy_row, dy_column,
    x_batch, x_channel, x_row, x_column,
    scale_batch, scale_channel, shift_batch, shift_channel,
    mask_batch, mask_row, mask_column,
    dx_batch, dx_channel, dx_row, dx_column,
    WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample, split = (tl.program_id(0) // splits).to(tl.int64), tl.program_id(0) % splits
    channel = tl.arange(0, CHANNELS)
    own = channel < WIDTH
    factor = 1.0 + load(scale + sample * scale_batch, channel * scale_channel, own)
    offset = load(shift + sample * shift_batch, channel * shift_channel, own)
    sums = tl.zeros([CHANNELS], tl.float32)
    products = tl.zeros([CHANNELS], tl.float32)
    first = split * part_cells
    last = tl.minimum(first + part_cells, cells)
    for start in range(first, last, CELLS):
        cell = start + tl.arange(0, CELLS)
        valid = valid_cells(
            mask, sample, mask_batch, mask_row, mask_column, cell, last, COLUMNS, HAS_MASK
        )
        inside = valid[:, None] & own[None, :]
        within = (cell < last)[:, None] & own[None, :]
        offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
        values = load_tile(x + sample * x_batch, offsets, inside, within, SKIP)
        mean = tl.sum(values, axis=1) / WIDTH
        centred = tl.where(inside, values - mean[:, None], 0.0)
        rstd = _inverse_deviation(tl.sum(centred * centred, axis=1) / WIDTH, eps)
        normalized = centred * rstd[:, None]
        slope = _silu_slope(normalized * factor[None, :] + offset[None, :])
        offsets = tile_offsets(cell, channel, dy_channel, dy_row, dy_column, COLUMNS)
        du = load_tile(dy + sample * dy_batch, offsets, inside, within, SKIP) * slope
        sums += tl.sum(du, axis=0)
        products += tl.sum(du * normalized, axis=0)
        gradient = du * factor[None, :]
        mean_gradient = tl.sum(gradient, axis=1) / WIDTH
        mean_product = tl.sum(gradient * normalized, axis=1) / WIDTH
        result = gradient - mean_gradient[:, None] - normalized * mean_product[:, None]
        result = tl.where(inside, result * rstd[:, None], 0.0)
        offsets = tile_offsets(cell, channel, dx_channel, dx_row, dx_column, COLUMNS)
        tl.store(dx + sample * dx_batch + offsets, result, mask=within)
    where = parts + tl.program_id(0).to(tl.int64) * (2 * WIDTH)
    tl.store(where + channel, sums, mask=own)
    tl.store(where + WIDTH + channel, products, mask=own)


# Launches


class _Tiling(NamedTuple):
    """How rows of (cells, width channels) are cut into tiles, and shared by programs.

    Attributes:
        width: Channels of a row.
        cells: Cells of a tile.
        channels: Channels of a tile: the power of 2 from `width` up.
        whole: Whether one tile holds a row.
        tiles: Tiles of a row.
        splits: Programs that share a row where each goes through several tiles.
        part_cells: Cells of each of those.
    """

    width: int
    cells: int
    channels: int
    whole: bool
    tiles: int
    splits: int
    part_cells: int

    def constants(self, x: Tensor, mask: Tensor | None, columns: int) -> dict[str, Any]:
        """Name what kernels are compiled for."""
        return {
            "WIDTH": self.width,
            "HAS_MASK": mask is not None,
            "SKIP": x.stride(1) == 1,
            "COLUMNS": columns,
            "CELLS": self.cells,
            "CHANNELS": self.channels,
            "num_warps": warps_for(self.cells * self.channels),
        }


def _tile(rows: int, width: int, cells: int, most: int = 0) -> _Tiling:
    """Cut `rows` rows; a row of `most` elements or fewer is one tile, unless rows are few."""
    channels, all_cells = power_of_2(width), power_of_2(cells)
    if all_cells * channels <= (most if rows >= _FEW_ROWS else min(most, _SMALL)):
        return _Tiling(width, all_cells, channels, True, 1, 1, cells)
    tile_cells = min(max(_PART // channels, 1), all_cells)
    tiles = ceil_div(cells, tile_cells)
    part_cells = ceil_div(tiles, min(tiles, ceil_div(_PROGRAMS, rows))) * tile_cells
    splits = ceil_div(cells, part_cells)
    return _Tiling(width, tile_cells, channels, False, tiles, splits, part_cells)


# Group norm as an operator that torch can differentiate and compile


@torch.library.custom_op("tmapdiff::stylize_group", mutates_args=())
def _group_op(
    x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the result, and mean, rstd and count of each group, (B, groups, 3)."""
    x = within_reach(x)
    y, statistics = _empty_group(x, scale, shift, mask, num_groups, eps)
    if not x.numel():
        return y, statistics
    columns, (mask_strides, x_strides, y_strides) = cell_strides(mask, x, y)
    cells, rows = x.shape[2] * x.shape[3], len(x) * num_groups
    inputs = x, scale, shift, as_bytes(mask)
    strides = *x_strides, *scale.stride(), *shift.stride(), *mask_strides, *y_strides
    tiling = _tile(rows, x.shape[1] // num_groups, cells, _WHOLE)
    constants = tiling.constants(x, mask, columns)
    with torch.cuda.device_of(x):
        if tiling.whole:
            _group_whole[(rows,)](
                *inputs, y, statistics, cells, num_groups, eps, *strides, **constants
            )
            return y, statistics
        parts = statistics.new_empty((rows, tiling.splits, 3))
        _group_part[(rows * tiling.splits,)](
            x, inputs[-1], parts, cells, num_groups, tiling.splits, tiling.part_cells,
            *x_strides, *mask_strides, **constants,
        )  # fmt: skip
        _group_join[(rows * tiling.tiles,)](
            *inputs, parts, y, statistics, cells, num_groups, tiling.splits, tiling.tiles, eps,
            *strides, **constants, SPLITS=power_of_2(tiling.splits),
        )  # fmt: skip
    return y, statistics


@_group_op.register_fake
def _empty_group(
    x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], num_groups, 3), dtype=torch.float32)
    return empty_like_maps(within_reach(x)), statistics


@torch.library.custom_op("tmapdiff::stylize_group_backward", mutates_args=())
def _group_backward_op(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    statistics: Tensor,
    num_groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = within_reach(dy), within_reach(x)
    gradients = _empty_gradients(dy, x, scale, shift)
    dx, dscale, dshift = gradients
    if not x.numel():
        return dx, dscale.zero_(), dshift.zero_()
    columns, (mask_strides, dy_strides, x_strides, dx_strides) = cell_strides(mask, dy, x, dx)
    cells, rows = x.shape[2] * x.shape[3], len(x) * num_groups
    inputs = dy, x, scale, shift, as_bytes(mask), statistics
    strides = *dy_strides, *x_strides, *scale.stride(), *shift.stride(), *mask_strides
    tiling = _tile(rows, x.shape[1] // num_groups, cells, _WHOLE_BACKWARD)
    constants = tiling.constants(x, mask, columns)
    with torch.cuda.device_of(x):
        if tiling.whole:
            _group_whole_backward[(rows,)](
                *inputs, *gradients, cells, num_groups, *strides, *dx_strides, **constants
            )
            return gradients
        parts = statistics.new_empty((rows, tiling.splits, 2, tiling.width))
        _group_part_backward[(rows * tiling.splits,)](
            *inputs, parts, cells, num_groups, tiling.splits, tiling.part_cells,
            *strides, **constants,
        )  # fmt: skip
        _group_join_backward[(rows * tiling.tiles,)](
            *inputs, parts, *gradients, cells, num_groups, tiling.splits, tiling.tiles,
            *strides, *dx_strides, **constants,
        )  # fmt: skip
    return gradients


@_group_backward_op.register_fake
def _empty_gradients(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    styles = scale.new_empty(scale.shape), shift.new_empty(shift.shape)
    return empty_like_maps(within_reach(x)), *styles


def _save_for_group(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale, shift, mask, ctx.num_groups, ctx.eps = inputs
    ctx.save_for_backward(x, scale, shift, mask, output[1])
    ctx.set_materialize_grads(False)


def _group_gradients(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    if torch.is_grad_enabled():
        given = *ctx.saved_tensors[:-1], ctx.num_groups, ctx.eps
        return gradients_of(reference.stylize, given, ctx.needs_input_grad, dy)
    return *_group_backward_op(dy, *ctx.saved_tensors, ctx.num_groups), None, None, None


_group_op.register_autograd(_group_gradients, setup_context=_save_for_group)


# Layer norm, likewise


@torch.library.custom_op("tmapdiff::stylize_layer", mutates_args=())
def _layer_op(x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    x = within_reach(x)
    y = empty_like_maps(x)
    if not x.numel():
        return y
    columns, (mask_strides, x_strides, y_strides) = cell_strides(mask, x, y)
    cells = x.shape[2] * x.shape[3]
    tiling = _tile(len(x), x.shape[1], cells)
    with torch.cuda.device_of(x):
        _layer[(len(x) * tiling.tiles,)](
            x, scale, shift, as_bytes(mask), y, cells, tiling.tiles, eps,
            *x_strides, *scale.stride(), *shift.stride(), *mask_strides, *y_strides,
            **tiling.constants(x, mask, columns),
        )  # fmt: skip
    return y


@_layer_op.register_fake
def _empty_layer(
    x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, eps: float
) -> Tensor:
    return empty_like_maps(within_reach(x))


@torch.library.custom_op("tmapdiff::stylize_layer_backward", mutates_args=())
def _layer_backward_op(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = within_reach(dy), within_reach(x)
    dx, dscale, dshift = _empty_gradients(dy, x, scale, shift)
    if not x.numel():
        return dx, dscale.zero_(), dshift.zero_()
    columns, (mask_strides, dy_strides, x_strides, dx_strides) = cell_strides(mask, dy, x, dx)
    cells = x.shape[2] * x.shape[3]
    tiling = _tile(len(x), x.shape[1], cells)
    parts = x.new_empty((len(x), tiling.splits, 2, tiling.width), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _layer_backward[(len(x) * tiling.splits,)](
            dy, x, scale, shift, as_bytes(mask), parts, dx,
            cells, tiling.splits, tiling.part_cells, eps,
            *dy_strides, *x_strides, *scale.stride(), *shift.stride(), *mask_strides, *dx_strides,
            **tiling.constants(x, mask, columns),
        )  # fmt: skip
    sums, products = parts.sum(dim=1).unbind(dim=1)
    return dx, dscale.copy_(products), dshift.copy_(sums)


_layer_backward_op.register_fake(_empty_gradients)


def _save_for_layer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _layer_definition(
    x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, eps: float
) -> Tensor:
    return reference.stylize(x, scale, shift, mask, None, eps)


def _layer_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        given = *ctx.saved_tensors, ctx.eps
        return gradients_of(_layer_definition, given, ctx.needs_input_grad, dy)
    return *_layer_backward_op(dy, *ctx.saved_tensors, ctx.eps), None, None


_layer_op.register_autograd(_layer_gradients, setup_context=_save_for_layer)


def stylize(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    num_groups: int | None,
    eps: float,
) -> Tensor:
    """Compute the operation in Triton."""
    if num_groups is None:
        return _layer_op(x, scale, shift, mask, eps)
    return _group_op(x, scale, shift, mask, num_groups, eps)[0]
