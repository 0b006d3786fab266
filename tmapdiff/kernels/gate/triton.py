"""The gate in Triton: one read and one write; invalid cells are never read."""

from typing import Any

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
from tmapdiff.kernels._tiles import (
    cell_offsets,
    load,
    load_tile,
    tile_offsets,
    valid_cells,
    valid_tile,
)
from tmapdiff.kernels.gate import reference
from tmapdiff.kernels.memory_order import empty_like_maps

# Elements and channels of a tile.
_TILE, _CHANNELS = 4096, 64
# Target number of programs in a backward pass: about eight per multiprocessor of an H100 or H200.
_PROGRAMS = 1024


@triton.jit
def _forward(
    x, mask, y,
    cells, channels, cell_tiles, channel_tiles,
    x_batch, x_channel, x_row, x_column,
    mask_batch,
    y_batch, y_channel, y_row, y_column,
    SHARED: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel_tile = tl.program_id(0) // channel_tiles, tl.program_id(0) % channel_tiles
    sample, cell_tile = (row // cell_tiles).to(tl.int64), row % cell_tiles
    cell = cell_tile * CELLS + tl.arange(0, CELLS)
    channel = channel_tile * CHANNELS + tl.arange(0, CHANNELS)
    own = channel < channels
    valid, inside, within = valid_tile(mask, sample * mask_batch, cell, cells, own, HAS_MASK)

    x += sample * x_batch
    offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
    features = load_tile(x, offsets, inside, within, SKIP)
    gates = x + channels * x_channel
    if SHARED:
        gate = load(gates, cell_offsets(cell, x_row, x_column, COLUMNS), valid)[:, None]
    else:
        gate = load_tile(gates, offsets, inside, within, SKIP)
    # Not a maximum, which would turn NaN into 0.
    result = tl.where(features <= 0.0, 0.0, features) * tl.sigmoid(gate)
    offsets = tile_offsets(cell, channel, y_channel, y_row, y_column, COLUMNS)
    tl.store(y + sample * y_batch + offsets, tl.where(inside, result, 0.0), mask=within)


@triton.jit
def _backward(
    dy, x, mask, dx,
    cells, channels, cell_tiles,
    dy_batch, dy_channel, dy_row, dy_column,
    x_batch, x_channel, x_row, x_column,
    mask_batch,
    dx_batch, dx_channel, dx_row, dx_column,
    SHARED: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    COLUMNS: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // cell_tiles).to(tl.int64)
    cell = tl.program_id(0) % cell_tiles * CELLS + tl.arange(0, CELLS)
    valid = valid_cells(mask, sample * mask_batch, cell, cells, HAS_MASK)
    dy += sample * dy_batch
    x += sample * x_batch
    dx += sample * dx_batch
    gates = x + channels * x_channel
    dgates = dx + channels * dx_channel
    if SHARED:
        shared_gate = load(gates, cell_offsets(cell, x_row, x_column, COLUMNS), valid)
        products = tl.zeros([CELLS], tl.float32)

    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        own = channel < channels
        inside = valid[:, None] & own[None, :]
        within = (cell < cells)[:, None] & own[None, :]
        offsets = tile_offsets(cell, channel, x_channel, x_row, x_column, COLUMNS)
        features = load_tile(x, offsets, inside, within, SKIP)
        gate = shared_gate[:, None] if SHARED else load_tile(gates, offsets, inside, within, SKIP)
        open_share = tl.sigmoid(gate)
        offsets = tile_offsets(cell, channel, dy_channel, dy_row, dy_column, COLUMNS)
        upper = load_tile(dy, offsets, inside, within, SKIP)
        dfeatures = tl.where(features <= 0.0, 0.0, upper * open_share)
        # Gradient of the sigmoid's argument, without the factor 1 - sigmoid.
        product = dfeatures * features
        offsets = tile_offsets(cell, channel, dx_channel, dx_row, dx_column, COLUMNS)
        tl.store(dx + offsets, dfeatures, mask=within)
        if SHARED:
            products += tl.sum(tl.where(inside, product, 0.0), axis=1)
        else:
            dgate = tl.where(inside, product * (1.0 - open_share), 0.0)
            tl.store(dgates + offsets, dgate, mask=within)
    if SHARED:
        dgate = tl.where(valid, products * (1.0 - tl.sigmoid(shared_gate)), 0.0)
        where = dgates + cell_offsets(cell, dx_row, dx_column, COLUMNS)
        tl.store(where, dgate, mask=cell < cells)


def _tile_of(channels: int, cells: int) -> tuple[int, int]:
    """Return the cells and channels of a tile."""
    tile_channels = min(power_of_2(channels), _CHANNELS)
    return min(_TILE // tile_channels, power_of_2(cells)), tile_channels


def _backward_tile_of(channels: int, cells: int, batch: int) -> tuple[int, int]:
    """Return the cells and channels of a tile, for programs that loop over all channels."""
    tile_cells, tile_channels = _tile_of(channels, cells)
    while tile_cells > 16 and batch * ceil_div(cells, tile_cells) < _PROGRAMS:
        tile_cells //= 2
    return tile_cells, tile_channels


@torch.library.custom_op("tmapdiff::gate", mutates_args=())
def _gate_op(convolved: Tensor, mask: Tensor | None, channels: int) -> Tensor:
    convolved = within_reach(convolved)
    y = empty_like_maps(convolved, channels)
    if not y.numel():
        return y
    columns, (convolved_strides, y_strides) = cell_strides(convolved, y)
    valid, mask_batch = mask_bytes(mask)
    batch, cells = len(convolved), convolved.shape[2] * convolved.shape[3]
    tile_cells, tile_channels = _tile_of(channels, cells)
    cell_tiles, channel_tiles = ceil_div(cells, tile_cells), ceil_div(channels, tile_channels)
    with torch.cuda.device_of(y):
        _forward[(batch * cell_tiles * channel_tiles,)](
            convolved, valid, y, cells, channels, cell_tiles, channel_tiles,
            *convolved_strides, mask_batch, *y_strides,
            **tile_constants(convolved, mask, columns, tile_cells, tile_channels),
            SHARED=convolved.shape[1] == channels + 1,
        )  # fmt: skip
    return y


@_gate_op.register_fake
def _empty_gate(convolved: Tensor, mask: Tensor | None, channels: int) -> Tensor:
    return empty_like_maps(within_reach(convolved), channels)


@torch.library.custom_op("tmapdiff::gate_backward", mutates_args=())
def _gate_backward_op(dy: Tensor, convolved: Tensor, mask: Tensor | None, channels: int) -> Tensor:
    dy, convolved = within_reach(dy), within_reach(convolved)
    dconvolved = empty_like_maps(convolved)
    if not convolved.numel():
        return dconvolved
    columns, strides = cell_strides(dy, convolved, dconvolved)
    dy_strides, convolved_strides, dconvolved_strides = strides
    valid, mask_batch = mask_bytes(mask)
    batch, cells = len(convolved), convolved.shape[2] * convolved.shape[3]
    tile_cells, tile_channels = _backward_tile_of(channels, cells, batch)
    cell_tiles = ceil_div(cells, tile_cells)
    with torch.cuda.device_of(convolved):
        _backward[(batch * cell_tiles,)](
            dy, convolved, valid, dconvolved, cells, channels, cell_tiles,
            *dy_strides, *convolved_strides, mask_batch, *dconvolved_strides,
            **tile_constants(convolved, mask, columns, tile_cells, tile_channels),
            SHARED=convolved.shape[1] == channels + 1,
        )  # fmt: skip
    return dconvolved


@_gate_backward_op.register_fake
def _empty_gradient(dy: Tensor, convolved: Tensor, mask: Tensor | None, channels: int) -> Tensor:
    return empty_like_maps(within_reach(convolved))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    convolved, mask, ctx.channels = inputs
    ctx.save_for_backward(convolved, mask)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    inputs = *ctx.saved_tensors, ctx.channels
    if torch.is_grad_enabled():
        return gradients_of(reference.gate_features, inputs, ctx.needs_input_grad, dy)
    return _gate_backward_op(dy, *inputs), None, None


_gate_op.register_autograd(_gradients, setup_context=_save)

gate_features = _gate_op
