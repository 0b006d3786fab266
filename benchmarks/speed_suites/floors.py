"""Shortest times by arithmetic: operations and bytes, at the machine's measured rates.

A layer reads its inputs from memory once and writes its result once. A spectral convolution has
three such steps: it transforms the maps, multiplies their spectra with the kernel's, which are
cached, and transforms the product back. The cheaper of direct and spectral convolution counts, with
the best tiles.
"""

import torch
from speed_cases import Ceilings, Work
from timing import Clock

from speed_suites.setting import Setting, make_localizer
from tmapdiff.kernels.map_conv.costs import ConvSizes, direct_operations
from tmapdiff.kernels.map_conv.transforms import MapTransform
from tmapdiff.layers import StylizationBlock


def conv_floor(sizes: ConvSizes, ceilings: Ceilings) -> float:
    """Return the shortest time of a convolution with fixed weights."""
    ways = [[direct_work(sizes)]]
    ways += [spectral_work(sizes, transform) for transform in all_transforms(sizes)]
    return min(
        sum(ceilings.seconds(one.operations, one.bytes_moved, sizes.dtype) for one in way)
        for way in ways
    )


def total(*steps: Work) -> Work:
    return Work(sum(one.operations for one in steps), sum(one.bytes_moved for one in steps))


def direct_work(sizes: ConvSizes) -> Work:
    """Return the work of a direct convolution."""
    channels = sizes.in_channels + sizes.out_channels
    maps = sizes.batch * sizes.rows * sizes.columns * channels
    kernel = sizes.kernel_size**2 * sizes.in_channels * sizes.out_channels
    return Work(direct_operations(sizes), float(maps + kernel) * sizes.item_bytes)


def spectral_work(sizes: ConvSizes, transform: MapTransform) -> list[Work]:
    """Return the work of each step of a spectral convolution, given the kernel's spectrum."""
    frequencies, rows = transform.num_frequencies, sizes.batch * transform.num_tiles
    cells = sizes.batch * sizes.rows * sizes.columns
    kernel = sizes.in_channels * sizes.out_channels
    durations = 2 * (transform.middle_durations + 2)
    steps = []
    for channels in (sizes.in_channels, sizes.out_channels):
        width = sizes.batch * channels
        along_durations = 2.0 * durations * sizes.columns * sizes.rows * width
        along_starts = 8.0 * frequencies * transform.num_tiles * sizes.rows * width
        numbers = cells * channels + 2.0 * frequencies * rows * channels
        steps.append(Work(along_durations + along_starts, numbers * sizes.item_bytes))
    spectra = kernel + rows * (sizes.in_channels + sizes.out_channels)
    product = Work(
        8.0 * frequencies * rows * kernel, 2.0 * frequencies * spectra * sizes.item_bytes
    )
    return [steps[0], product, steps[1]]


def all_transforms(sizes: ConvSizes) -> list[MapTransform]:
    """List the transforms of a map, one per tile length."""
    tiles = {-(-sizes.rows // parts) for parts in range(1, sizes.rows + 1)}
    return [
        MapTransform(sizes.rows, sizes.columns, sizes.kernel_size, tile) for tile in sorted(tiles)
    ]


def decoder_floor(
    setting: Setting, preset: str, batch: int, dtype: torch.dtype, ceilings: Ceilings
) -> float:
    """Return the shortest time of a denoising step by convolutions, with prepared features.

    It counts the convolutions with their gates, the stylization blocks, and reading the features;
    the rest is small.
    """
    decoder, seconds = make_localizer(preset, setting.device, dtype).decoder, 0.0
    for (rows, columns), one in zip(decoder.grid.shapes, decoder.decoders, strict=True):
        cells = batch * rows * columns
        features = cells * one.condition.feature_channels * dtype.itemsize
        seconds += ceilings.seconds(0.0, features, dtype)
        for layer in one.convs:
            sizes = ConvSizes(
                batch,
                layer.in_channels,
                layer.out_channels + layer.gate_channels,
                rows,
                columns,
                layer.conv.kernel_size[0],
                dtype,
                decoder.device.type,
            )
            seconds += conv_floor(sizes, ceilings)
        for block in (one.fusion_style, *one.conv_styles):
            if not isinstance(block, StylizationBlock):
                continue
            mlp = 2.0 * cells * block.channels**2
            moved = 2 * cells * block.channels * dtype.itemsize
            seconds += ceilings.seconds(mlp, moved, dtype)
    return seconds


_REPEATS = 10


def measure_ceilings(setting: Setting, clock: Clock) -> Ceilings:
    """Measure both rates, that of products in each dtype, by the shortest of several times."""
    numbers, size = (2**30, 8192) if setting.on_gpu else (2**26, 2048)
    if setting.quick:
        numbers, size = 2**22, 512
    dtypes = dict.fromkeys([*setting.dtypes, torch.float32])
    return Ceilings(
        _bytes_a_second(setting, clock, numbers),
        {dtype: _operations_a_second(setting, clock, size, dtype) for dtype in dtypes},
    )


def _bytes_a_second(setting: Setting, clock: Clock, numbers: int) -> float:
    source = torch.rand(numbers, device=setting.device)
    target = torch.zeros_like(source)
    seconds = min(clock.seconds(lambda: target.copy_(source)) for _ in range(_REPEATS))
    return 2 * source.nbytes / seconds


def _operations_a_second(setting: Setting, clock: Clock, size: int, dtype: torch.dtype) -> float:
    a, b = (setting.random(size, size, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = min(clock.seconds(lambda: torch.mm(a, b)) for _ in range(_REPEATS))
    return 2 * size**3 / seconds
