"""Gate in Triton: one read and one write, invalid cells never read."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tmapdiff.kernels._launch import ceil_div, cells_of, empty_like_maps, power_of_2, warps_for
from tmapdiff.kernels._tiles import bytes_and_strides, load, load_tile, valid_cells

# Elements and channels of a tile.
_TILE, _CHANNELS = 4096, 64
# Programs that a backward pass aims at: about eight for each multiprocessor of an H100 or H200.
_PROGRAMS = 1024


@triton.jit
def _forward(
    convolved, bias, mask, y,
    cells, channels, cell_tiles, channel_tiles,
    convolved_batch, convolved_channel, convolved_cell,
    bias_channel, mask_batch, mask_cell,
    y_batch, y_channel, y_cell,
    SHARED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel_tile = tl.program_id(0) // channel_tiles, tl.program_id(0) % channel_tiles
    sample, cell_tile = (row // cell_tiles).to(tl.int64), row % cell_tiles
    cell = cell_tile * CELLS + tl.arange(0, CELLS)
    channel = channel_tile * CHANNELS + tl.arange(0, CHANNELS)
    own = channel < channels
    valid = valid_cells(mask, sample, mask_batch, mask_cell, cell, cells, HAS_MASK)
    inside = valid[:, None] & own[None, :]
    within = (cell < cells)[:, None] & own[None, :]

    convolved += sample * convolved_batch
    offsets = cell[:, None] * convolved_cell + channel[None, :] * convolved_channel
    features = load_tile(convolved, offsets, inside, within, SKIP)
    if HAS_BIAS:
        features += load(bias, channel * bias_channel, own)[None, :]
    gates = convolved + channels * convolved_channel
    if SHARED:
        gate = load(gates, cell * convolved_cell, valid)[:, None]
        if HAS_BIAS:
            gate += tl.load(bias + channels * bias_channel).to(tl.float32)
    else:
        gate = load_tile(gates, offsets, inside, within, SKIP)
        if HAS_BIAS:
            gate += load(bias + channels * bias_channel, channel * bias_channel, own)[None, :]
    # Not a maximum, which would make 0 of NaN.
    result = tl.where(features <= 0.0, 0.0, features) * tl.sigmoid(gate)
    offsets = cell[:, None] * y_cell + channel[None, :] * y_channel
    tl.store(y + sample * y_batch + offsets, tl.where(inside, result, 0.0), mask=within)


@triton.jit
def _backward(
    dy, convolved, bias, mask, dconvolved, parts,
    cells, channels, cell_tiles,
    dy_batch, dy_channel, dy_cell,
    convolved_batch, convolved_channel, convolved_cell,
    bias_channel, mask_batch, mask_cell,
    dconvolved_batch, dconvolved_channel, dconvolved_cell,
    SHARED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, SKIP: tl.constexpr,
    CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // cell_tiles).to(tl.int64)
    cell = tl.program_id(0) % cell_tiles * CELLS + tl.arange(0, CELLS)
    valid = valid_cells(mask, sample, mask_batch, mask_cell, cell, cells, HAS_MASK)
    dy += sample * dy_batch
    convolved += sample * convolved_batch
    dconvolved += sample * dconvolved_batch
    gates = convolved + channels * convolved_channel
    dgates = dconvolved + channels * dconvolved_channel
    if SHARED:
        shared_gate = load(gates, cell * convolved_cell, valid)
        if HAS_BIAS:
            shared_gate += tl.load(bias + channels * bias_channel).to(tl.float32)
        products = tl.zeros([CELLS], tl.float32)
    if HAS_BIAS:
        gate_channels = 1 if SHARED else channels
        parts += tl.program_id(0).to(tl.int64) * (channels + gate_channels)

    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        own = channel < channels
        inside = valid[:, None] & own[None, :]
        within = (cell < cells)[:, None] & own[None, :]
        offsets = cell[:, None] * convolved_cell + channel[None, :] * convolved_channel
        features = load_tile(convolved, offsets, inside, within, SKIP)
        if HAS_BIAS:
            features += load(bias, channel * bias_channel, own)[None, :]
        if SHARED:
            gate = shared_gate[:, None]
        else:
            gate = load_tile(gates, offsets, inside, within, SKIP)
            if HAS_BIAS:
                gate += load(bias + channels * bias_channel, channel * bias_channel, own)[None, :]
        open_share = tl.sigmoid(gate)
        offsets = cell[:, None] * dy_cell + channel[None, :] * dy_channel
        upper = load_tile(dy, offsets, inside, within, SKIP)
        dfeatures = tl.where(features <= 0.0, 0.0, upper * open_share)
        # Of the sigmoid's argument, but for the factor 1 - sigmoid.
        product = dfeatures * features
        offsets = cell[:, None] * dconvolved_cell + channel[None, :] * dconvolved_channel
        tl.store(dconvolved + offsets, dfeatures, mask=within)
        if HAS_BIAS:
            tl.store(parts + channel, tl.sum(dfeatures, axis=0), mask=own)
        if SHARED:
            products += tl.sum(tl.where(inside, product, 0.0), axis=1)
        else:
            dgate = tl.where(inside, product * (1.0 - open_share), 0.0)
            tl.store(dgates + offsets, dgate, mask=within)
            if HAS_BIAS:
                tl.store(parts + channels + channel, tl.sum(dgate, axis=0), mask=own)
    if SHARED:
        dgate = tl.where(valid, products * (1.0 - tl.sigmoid(shared_gate)), 0.0)
        tl.store(dgates + cell * dconvolved_cell, dgate, mask=cell < cells)
        if HAS_BIAS:
            tl.store(parts + channels, tl.sum(dgate))


def _constants(convolved: Tensor, mask: Tensor | None, bias: Tensor | None) -> dict[str, Any]:
    return {
        "HAS_BIAS": bias is not None,
        "HAS_MASK": mask is not None,
        "SKIP": convolved.stride(1) == 1,
    }


def _tile_of(channels: int, cells: int) -> tuple[int, int]:
    """Cells and channels of a tile."""
    tile_channels = min(power_of_2(channels), _CHANNELS)
    return min(_TILE // tile_channels, power_of_2(cells)), tile_channels


def _backward_tile_of(channels: int, cells: int, batch: int) -> tuple[int, int]:
    """Cells and channels of a tile, where one program goes through all channels of its cells."""
    tile_cells, tile_channels = _tile_of(channels, cells)
    while tile_cells > 16 and batch * ceil_div(cells, tile_cells) < _PROGRAMS:
        tile_cells //= 2
    return tile_cells, tile_channels


@torch.library.custom_op("tmapdiff::gate", mutates_args=())
def _gate_op(convolved: Tensor, mask: Tensor | None, bias: Tensor | None, channels: int) -> Tensor:
    y = empty_like_maps(convolved, channels)
    if not y.numel():
        return y
    source, target = cells_of(convolved), cells_of(y)
    batch, given, cells = source.shape
    valid, valid_strides = bytes_and_strides(mask)
    tile_cells, tile_channels = _tile_of(channels, cells)
    cell_tiles, channel_tiles = ceil_div(cells, tile_cells), ceil_div(channels, tile_channels)
    with torch.cuda.device_of(y):
        _forward[(batch * cell_tiles * channel_tiles,)](
            source, bias, valid, target, cells, channels, cell_tiles, channel_tiles,
            *source.stride(), 0 if bias is None else bias.stride(0), *valid_strides,
            *target.stride(),
            SHARED=given == channels + 1, **_constants(source, mask, bias),
            CELLS=tile_cells, CHANNELS=tile_channels,
            num_warps=warps_for(tile_cells * tile_channels),
        )  # fmt: skip
    return y


@_gate_op.register_fake
def _empty_gate(
    convolved: Tensor, mask: Tensor | None, bias: Tensor | None, channels: int
) -> Tensor:
    return empty_like_maps(convolved, channels)


@torch.library.custom_op("tmapdiff::gate_backward", mutates_args=())
def _gate_backward_op(
    dy: Tensor, convolved: Tensor, mask: Tensor | None, bias: Tensor | None, channels: int
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `convolved` and of `bias`, the latter empty without one."""
    dconvolved, dbias = _empty_gradients(dy, convolved, mask, bias, channels)
    if not convolved.numel():
        return dconvolved, dbias.zero_()
    upper, source, target = cells_of(dy), cells_of(convolved), cells_of(dconvolved)
    batch, given, cells = source.shape
    valid, valid_strides = bytes_and_strides(mask)
    tile_cells, tile_channels = _backward_tile_of(channels, cells, batch)
    cell_tiles = ceil_div(cells, tile_cells)
    programs = batch * cell_tiles
    parts = None
    if bias is not None:
        parts = convolved.new_empty((programs, given), dtype=torch.float32)
    with torch.cuda.device_of(convolved):
        _backward[(programs,)](
            upper, source, bias, valid, target, parts, cells, channels, cell_tiles,
            *upper.stride(), *source.stride(), 0 if bias is None else bias.stride(0),
            *valid_strides, *target.stride(),
            SHARED=given == channels + 1, **_constants(source, mask, bias),
            CELLS=tile_cells, CHANNELS=tile_channels,
            num_warps=warps_for(tile_cells * tile_channels),
        )  # fmt: skip
    if parts is not None:
        dbias.copy_(parts.sum(dim=0))
    return dconvolved, dbias


@_gate_backward_op.register_fake
def _empty_gradients(
    dy: Tensor, convolved: Tensor, mask: Tensor | None, bias: Tensor | None, channels: int
) -> tuple[Tensor, Tensor]:
    shape, like = ((0,), convolved) if bias is None else (bias.shape, bias)
    return empty_like_maps(convolved), like.new_empty(shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.channels = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    convolved, mask, bias = ctx.saved_tensors
    dconvolved, dbias = _gate_backward_op(dy, convolved, mask, bias, ctx.channels)
    return dconvolved, None, None if bias is None else dbias, None


_gate_op.register_autograd(_gradients, setup_context=_save)


def gate_features(
    convolved: Tensor, mask: Tensor | None, channels: int, bias: Tensor | None
) -> Tensor:
    """Compute the operation in Triton."""
    return _gate_op(convolved, mask, bias, channels)
