"""Cost estimates of map convolutions, to choose backends and tile lengths.

Estimates are seconds on an idealized machine: the longer of computing and moving memory, each at
full speed. They settle clear cases; close ones are timed.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from tmapdiff.kernels._launch import uses_tf32
from tmapdiff.kernels.map_conv.transforms import MapTransform

# Speed of direct convolutions, as a share of that of matrix products.
_DIRECT_SPEED = {"cpu": 0.6}


@dataclass(frozen=True)
class ConvSizes:
    """Sizes of a map convolution: C is `in_channels`, D is `out_channels`.

    `rows` and `columns` are the starts and durations of each map in a `batch`. `device` is a device
    type, such as `cpu`.
    """

    batch: int
    in_channels: int
    out_channels: int
    rows: int
    columns: int
    kernel_size: int
    dtype: torch.dtype
    device: str

    @property
    def item_bytes(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def operations_per_second(self) -> float:
        """Floating-point operations per second in matrix products."""
        if self.device == "cpu":
            return 2.5e11
        if self.item_bytes == 2:
            return 6e14
        return 3e14 if uses_tf32() else 5e13

    @property
    def bytes_per_second(self) -> float:
        """Bytes per second to and from memory."""
        return 1e10 if self.device == "cpu" else 2.6e12

    def seconds(self, operations: float, numbers: float) -> float:
        """Estimate the time of a step that computes `operations` and moves `numbers`."""
        moved = numbers * self.item_bytes
        return max(operations / self.operations_per_second, moved / self.bytes_per_second)


def direct_operations(sizes: ConvSizes) -> float:
    """Count the operations of the direct convolution, padding included."""
    cells, taps = sizes.rows * sizes.columns, sizes.kernel_size**2
    return 2.0 * sizes.batch * cells * taps * sizes.in_channels * sizes.out_channels


def direct_seconds(sizes: ConvSizes) -> float:
    """Estimate the time of the direct convolution."""
    taps, channels = sizes.kernel_size**2, sizes.in_channels + sizes.out_channels
    maps = sizes.batch * sizes.rows * sizes.columns * channels
    weight = taps * sizes.in_channels * sizes.out_channels
    share = _DIRECT_SPEED.get(sizes.device, 1.0)
    return sizes.seconds(direct_operations(sizes) / share, maps + weight)


def spectral_seconds(sizes: ConvSizes, transform: MapTransform, *, with_kernel: bool) -> float:
    """Estimate the time of the spectral convolution, including the kernel's if `with_kernel`."""
    kernels = sizes.in_channels * sizes.out_channels
    rows = sizes.batch * transform.num_tiles
    frequencies = transform.num_frequencies
    total = sizes.seconds(
        8.0 * frequencies * rows * kernels,
        2.0 * frequencies * (kernels + 2 * rows * (sizes.in_channels + sizes.out_channels)),
    )
    for channels, planes in ((sizes.in_channels, 3), (sizes.out_channels, 2)):
        width = sizes.batch * channels
        total += _transform_seconds(
            sizes, transform, (sizes.rows, sizes.columns), planes * transform.num_tiles, width
        )
    if with_kernel:
        size = (sizes.kernel_size, sizes.kernel_size)
        total += _transform_seconds(sizes, transform, size, 2, kernels)
    return total


def _transform_seconds(
    sizes: ConvSizes, transform: MapTransform, shape: tuple[int, int], planes: int, width: int
) -> float:
    rows, columns = shape
    durations = 2 * (transform.middle_durations + 2)
    spectrum = transform.num_frequencies * planes
    first = sizes.seconds(
        2.0 * durations * columns * rows * width, (columns + durations) * rows * width
    )
    second = sizes.seconds(2.0 * spectrum * 2 * rows * width, (durations * rows + spectrum) * width)
    return first + second


def best_transform(sizes: ConvSizes, *, with_kernel: bool) -> MapTransform:
    """Return the transform with the cheapest tiles; arguments are as for `spectral_seconds`."""
    if torch.compiler.is_compiling():
        return _best_transform(sizes, with_kernel)
    in_tf32 = uses_tf32()
    return _known_best_transform(sizes, with_kernel, in_tf32)


@lru_cache(maxsize=256)
def _known_best_transform(sizes: ConvSizes, with_kernel: bool, in_tf32: bool) -> MapTransform:
    # `sizes` reads torch's TF32 setting, so it must be part of the cache key.
    return _best_transform(sizes, with_kernel)


def _best_transform(sizes: ConvSizes, with_kernel: bool) -> MapTransform:
    # A plain loop, as older torch cannot compile generators and `min(key=...)`.
    parts, tile = 1, sizes.rows
    best = MapTransform(sizes.rows, sizes.columns, sizes.kernel_size, tile)
    least = spectral_seconds(sizes, best, with_kernel=with_kernel)
    while parts < sizes.rows:
        parts *= 2
        if -(-sizes.rows // parts) == tile or parts > sizes.rows:
            continue
        tile = -(-sizes.rows // parts)
        one = MapTransform(sizes.rows, sizes.columns, sizes.kernel_size, tile)
        seconds = spectral_seconds(sizes, one, with_kernel=with_kernel)
        if seconds < least:
            best, least = one, seconds
    return best
