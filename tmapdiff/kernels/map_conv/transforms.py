"""Discrete Fourier transforms of maps, as products with small dense matrices.

A map convolution is a circular convolution of a slightly larger map, which is a matrix product at
each frequency. The transforms are matrix products, too: first along the durations, whose input is
real, then along the starts. They run in any dtype, on any device, at the speed of matrix products,
and write their results in the order in which the next product reads them.

For the first and last frequency of the durations, the transform is real, so half of the frequencies
of the starts suffice. These are the `edge`; the others are the `middle`.

Maps are `[durations, starts, samples, channels]` and spectra `[frequencies, parts, tiles, samples,
channels]`, with real and imaginary parts as separate planes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from tmapdiff.kernels._alignment import in_aligned_rows


class Tables(NamedTuple):
    """Matrices of a two-step transform: along the durations, then along the starts."""

    durations: Tensor
    edge: Tensor
    middle: Tensor


@dataclass(frozen=True)
class MapTransform:
    """Transforms between maps and spectra, for given sizes of map and kernel.

    The starts are divided into tiles, which are convolved separately. Shorter tiles have fewer
    frequencies, hence a smaller spectrum of the kernel, but more tiles to multiply.

    Args:
        rows: Starts of the map.
        columns: Durations of the map.
        kernel_size: Cells that the kernel spans; odd.
        tile: Starts per tile; at most `rows`.

    Source: overlap-save, Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7.3;
        transforms as products, FlashFFTConv, arXiv 2311.05908.
    """

    rows: int
    columns: int
    kernel_size: int
    tile: int

    @property
    def num_tiles(self) -> int:
        """Number of tiles that cover the starts."""
        return -(-self.rows // self.tile)

    @property
    def period(self) -> tuple[int, int]:
        """Cells of the circular map, along starts and durations; even."""
        reach = self.kernel_size // 2
        # Only cells that are cut off may wrap around. A single tile is surrounded by zeros.
        starts = self.tile + (reach if self.num_tiles == 1 else 2 * reach)
        return _even(starts), _even(self.columns + reach)

    @property
    def edge_starts(self) -> int:
        """Frequencies of the starts, at each edge frequency of the durations."""
        return self.period[0] // 2 + 1

    @property
    def middle_durations(self) -> int:
        """Middle frequencies of the durations."""
        return self.period[1] // 2 - 1

    @property
    def num_edge(self) -> int:
        """Frequencies of both edges."""
        return 2 * self.edge_starts

    @property
    def num_frequencies(self) -> int:
        """Frequencies per tile."""
        return self.num_edge + self.middle_durations * self.period[0]

    @property
    def scale(self) -> float:
        """Factor of both `forward` and `inverse`, split evenly to keep half precision in range.

        Also the ratio of a constant map to its spectrum at frequency 0.
        """
        return 1 / math.sqrt(math.prod(self.period))

    # Transforms

    def forward(self, maps: Tensor, *, rotated: bool = False) -> Tensor:
        """Transform `maps`, (A, N, B, C), to spectra, (frequencies, 2, tiles, B, C).

        `rotated` adds a third plane: the first two are the spectra times i, the last two the
        spectra.
        """
        tables = _forward_tables(self, rotated, maps.dtype, maps.device)
        return self._transform(tables, maps, (3 if rotated else 2, self.num_tiles))

    def forward_adjoint(self, spectra: Tensor) -> Tensor:
        """Apply the adjoint of `forward`: from a gradient of `spectra` to that of maps."""
        tables = _forward_tables(self, False, spectra.dtype, spectra.device)
        return self._transform_back(_transposed(tables), spectra, self.columns, self.rows)

    def inverse(self, spectra: Tensor) -> Tensor:
        """Transform `spectra` back to maps, keeping the part free of wrap-around."""
        tables = _inverse_tables(self, False, spectra.dtype, spectra.device)
        return self._transform_back(tables, spectra, self.columns, self.rows)

    def inverse_adjoint(self, maps: Tensor, *, rotated: bool = False) -> Tensor:
        """Apply the adjoint of `inverse`: from a gradient of `maps` to that of spectra.

        `rotated` adds a third plane: the first two are the spectra, the last two the spectra over
        i.
        """
        tables = _transposed(_inverse_tables(self, rotated, maps.dtype, maps.device))
        return self._transform(tables, maps, (3 if rotated else 2, self.num_tiles))

    def kernel(self, weight: Tensor) -> Tensor:
        """Transform a kernel, (D, C, S, S), to its spectrum, (frequencies, 2, C, D).

        C is innermost in memory, as in `weight`.
        """
        if self.kernel_size <= _SMALL_KERNEL:
            table = _small_kernel_table(self, weight.dtype, weight.device)
            spectrum = table.flatten(0, 1) @ weight.flatten(2).flatten(0, 1).T
            return spectrum.view(self.num_frequencies, 2, *weight.shape[:2]).mT
        tables = _kernel_tables(self, weight.dtype, weight.device)
        return self._transform(tables, weight.permute(3, 2, 0, 1), (2,)).mT

    def kernel_adjoint(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Apply the adjoint of `kernel`: from a gradient of its spectrum to that of the kernel.

        `real` and `imaginary` are (frequencies, C, D), best with C innermost in memory.
        """
        size, planes = self.kernel_size, (real.mT, imaginary.mT)
        if self.kernel_size <= _SMALL_KERNEL:
            # The transposed product, with long columns, would take twice the time.
            of_cell = _small_kernel_table(self, real.dtype, real.device).unbind(dim=1)
            kernel = torch.mm(of_cell[0].T, planes[0].flatten(1))
            kernel.addmm_(of_cell[1].T, planes[1].flatten(1))
            return kernel.view(size, size, *planes[0].shape[1:]).permute(2, 3, 0, 1)
        tables = _transposed(_kernel_tables(self, real.dtype, real.device))
        spectrum = torch.stack(planes, dim=1)
        return self._transform_back(tables, spectrum, size, size).permute(2, 3, 1, 0)

    def _transform(self, tables: Tables, maps: Tensor, parts: tuple[int, ...]) -> Tensor:
        columns, rows, *inner = maps.shape
        width, planes = math.prod(inner), math.prod(parts)
        # Stack the real and imaginary parts of all starts.
        durations = tables.durations @ maps.reshape(columns, rows * width)
        durations = durations.view(self.middle_durations + 2, 2 * rows, width)
        spectra = maps.new_empty(self.num_frequencies, planes, width)
        edge, middle = self._bands(spectra)
        torch.bmm(tables.edge.expand(2, -1, -1), durations[:2], out=edge)
        torch.bmm(tables.middle.expand(len(middle), -1, -1), durations[2:], out=middle)
        return spectra.view(self.num_frequencies, *parts, *inner)

    def _transform_back(self, tables: Tables, spectra: Tensor, columns: int, rows: int) -> Tensor:
        frequencies, *parts = spectra.shape[:-2]
        inner = spectra.shape[-2:]
        width = math.prod(inner)
        edge, middle = self._bands(spectra.reshape(frequencies, math.prod(parts), width))
        durations = spectra.new_empty(self.middle_durations + 2, 2 * rows, width)
        torch.bmm(tables.edge.expand(2, -1, -1), edge, out=durations[:2])
        torch.bmm(tables.middle.expand(len(middle), -1, -1), middle, out=durations[2:])
        maps = tables.durations @ durations.view(2 * len(durations), rows * width)
        return maps.view(columns, rows, *inner)

    def _bands(self, spectra: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of edge and middle, by frequency of the durations, then of the starts."""
        _, planes, width = spectra.shape
        edge = spectra[: self.num_edge].view(2, self.edge_starts * planes, width)
        middle = spectra[self.num_edge :].view(
            self.middle_durations, self.period[0] * planes, width
        )
        return edge, middle


# Tables, computed in float64 and then rounded. They are small and cached forever, as CUDA graphs
# keep reading them.

# Up to this size, one dense product transforms a kernel faster than two small ones.
_SMALL_KERNEL = 7


@cache
def _forward_tables(
    transform: MapTransform, rotated: bool, dtype: torch.dtype, device: torch.device
) -> Tables:
    reach = transform.kernel_size // 2
    cosine, sine = _waves(_duration_frequencies(transform), _positions(transform.columns))
    durations = rearrange([cosine, -sine], "part f a -> (f part) a") * transform.scale

    def starts(frequencies: Tensor) -> Tensor:
        position = _positions_in_tiles(transform)
        read = (position >= -reach) & (position < transform.tile + reach)
        real, imaginary = _turned(*(wave * read for wave in _waves(frequencies, position)))
        planes = [-imaginary, real, imaginary] if rotated else [real, imaginary]
        return rearrange(planes, "plane part f tile n -> (f plane tile) (part n)")

    return _rounded(transform, durations, starts, dtype, device)


@cache
def _inverse_tables(
    transform: MapTransform, rotated: bool, dtype: torch.dtype, device: torch.device
) -> Tables:
    frequencies = _duration_frequencies(transform)
    # Middle frequencies also represent their conjugates.
    pairs = torch.full_like(frequencies, 2.0)[:, None]
    pairs[:2] = 1
    cosine, sine = (one * pairs for one in _waves(frequencies, _positions(transform.columns)))
    durations = rearrange([cosine, -sine], "part f a -> (f part) a") * transform.scale

    def starts(frequencies: Tensor) -> Tensor:
        position = _positions_in_tiles(transform)
        written = (position >= 0) & (position < transform.tile)
        cosine, sine = (wave * written for wave in _waves(frequencies, position))
        is_edge = len(frequencies) != transform.period[0]
        if is_edge:  # the same, as its input is real
            pairs = torch.full_like(frequencies, 2.0)[:, None, None]
            pairs[[0, -1]] = 1
            cosine, sine = cosine * pairs, sine * pairs
        real, imaginary = _turned(cosine, sine)
        if is_edge:
            real[1], imaginary[1] = 0, 0
        planes = [real, imaginary, -real] if rotated else [real, imaginary]
        # Transposed below, to map spectra to maps.
        return rearrange(planes, "plane part f tile n -> (f plane tile) (part n)")

    return _transposed(_rounded(transform, durations, starts, dtype, device))


@cache
def _kernel_tables(transform: MapTransform, dtype: torch.dtype, device: torch.device) -> Tables:
    # Conjugated, as convolution layers do not flip the kernel.
    offsets = _positions(transform.kernel_size) - transform.kernel_size // 2
    cosine, sine = _waves(_duration_frequencies(transform), offsets)
    durations = rearrange([cosine, sine], "part f a -> (f part) a")

    def starts(frequencies: Tensor) -> Tensor:
        cosine, sine = _waves(frequencies, offsets)
        return rearrange(list(_turned(cosine, -sine)), "plane part f n -> (f plane) (part n)")

    return _rounded(transform, durations, starts, dtype, device)


@cache
def _small_kernel_table(
    transform: MapTransform, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Transform each cell of a kernel: (frequencies, 2, S * S)."""
    size = transform.kernel_size
    cpu = torch.device("cpu")  # not the default device
    cells = torch.eye(size**2, dtype=torch.float64, device=cpu).view(size, size, 1, size**2)
    tables = _kernel_tables(transform, torch.float64, cpu)
    return in_aligned_rows(
        transform._transform(tables, cells.transpose(0, 1), (2,))[:, :, 0].to(device, dtype)
    )


def _rounded(
    transform: MapTransform,
    durations: Tensor,
    starts: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Tables:
    period = transform.period[0]
    frequencies = _positions(period) * (2 * math.pi / period)
    tables = durations, starts(frequencies[: transform.edge_starts]), starts(frequencies)
    return Tables(*(in_aligned_rows(one.to(device, dtype)) for one in tables))


def _transposed(tables: Tables) -> Tables:
    return Tables(*(one.T for one in tables))


def _duration_frequencies(transform: MapTransform) -> Tensor:
    """Return angles per cell: the edge's first, then the middle's."""
    period = transform.period[1]
    index = [0, period // 2, *range(1, period // 2)]
    return torch.tensor(index, dtype=torch.float64) * (2 * math.pi / period)


def _positions(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64)


def _positions_in_tiles(transform: MapTransform) -> Tensor:
    """Return the position of each start relative to the first of each tile: (tiles, starts)."""
    return _positions(transform.rows) - transform.tile * _positions(transform.num_tiles)[:, None]


def _waves(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (frequencies, *positions)."""
    angles = frequencies.reshape(-1, *[1] * positions.dim()) * positions
    return angles.cos(), angles.sin()


def _turned(cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real and imaginary rows of a rotation of complex numbers by minus the angles."""
    return torch.stack([cosine, sine]), torch.stack([-sine, cosine])


def _even(number: int) -> int:
    return number + number % 2
