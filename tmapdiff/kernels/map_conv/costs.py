"""What a map convolution costs, by arithmetic: which way may be fastest, and how long tiles are.

Seconds on a machine of round numbers: the larger of operations and bytes, each at full speed. It
tells ways apart that differ by much; what lies closer is left to the clock.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from tmapdiff.kernels._launch import uses_tf32
from tmapdiff.kernels.map_conv.transforms import MapTransform

# Of the speed of matrix products, what direct convolutions reach.
_DIRECT_SPEED = {"cpu": 0.6}


@dataclass(frozen=True)
class ConvSizes:
    """Sizes of a map convolution: `in_channels` are C, `out_channels` D.

    `rows` and `columns` are the starts and durations of each of a `batch` of maps, `kernel_size`
    the cells that the kernel spans. The `device` is a kind, such as `cpu`; `dtype` is that of both.
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
    def operations_a_second(self) -> float:
        """Floating-point operations a second, in matrix products."""
        if self.device == "cpu":
            return 2.5e11
        if self.item_bytes == 2:
            return 6e14
        return 3e14 if uses_tf32() else 5e13

    @property
    def bytes_a_second(self) -> float:
        """Bytes a second to and from memory."""
        return 1e10 if self.device == "cpu" else 2.6e12

    def seconds(self, operations: float, numbers: float) -> float:
        """Time of a step with so many operations, which moves so many numbers."""
        moved = numbers * self.item_bytes
        return max(operations / self.operations_a_second, moved / self.bytes_a_second)


def direct_operations(sizes: ConvSizes) -> float:
    """Operations of the convolution as it is defined, padding included."""
    cells, taps = sizes.rows * sizes.columns, sizes.kernel_size**2
    return 2.0 * sizes.batch * cells * taps * sizes.in_channels * sizes.out_channels


def direct_seconds(sizes: ConvSizes) -> float:
    """Time of the direct convolution."""
    taps, channels = sizes.kernel_size**2, sizes.in_channels + sizes.out_channels
    maps = sizes.batch * sizes.rows * sizes.columns * channels
    weight = taps * sizes.in_channels * sizes.out_channels
    share = _DIRECT_SPEED.get(sizes.device, 1.0)
    return sizes.seconds(direct_operations(sizes) / share, maps + weight)


def spectral_seconds(sizes: ConvSizes, transform: MapTransform, *, with_kernel: bool) -> float:
    """Time of the spectral convolution; `with_kernel`, the kernel's spectrum is made, too."""
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
    """Find the transform whose tiles cost least; arguments as for `spectral_seconds`."""
    if torch.compiler.is_compiling():
        return _best_transform(sizes, with_kernel)
    in_tf32 = uses_tf32()
    return _known_best_transform(sizes, with_kernel, in_tf32)


@lru_cache(maxsize=256)
def _known_best_transform(sizes: ConvSizes, with_kernel: bool, in_tf32: bool) -> MapTransform:
    # TF32 is a setting of torch's that `sizes` look at: it belongs to what the result depends on.
    return _best_transform(sizes, with_kernel)


def _best_transform(sizes: ConvSizes, with_kernel: bool) -> MapTransform:
    # As plainly as can be: the compilers of older torch know no generators and no `min(key=...)`.
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
