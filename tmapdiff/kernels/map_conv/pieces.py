"""Long maps, cut into pieces that are convolved like a batch.

A transform is a dense matrix over all starts that it reads: of one map of N starts it grows with
N^2, of pieces of one length with N. Each piece takes along the starts around it that its cells
read; what is computed of those is dropped. On a CPU, some pieces at a time are convolved: spectra
of all would be far larger than the map, and memory that is fresh costs more than arithmetic.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from tmapdiff.kernels.map_conv.costs import ConvSizes

LONGEST = 256  # starts of the longest map that is transformed whole
PIECE = 128  # starts of a piece
_AT_ONCE = {"cpu": 2**21}  # numbers in the pieces that are convolved at once; all, elsewhere


def count(rows: int) -> int:
    """Pieces of a map of so many starts."""
    return -(-rows // PIECE)


def at_once(sizes: ConvSizes, *, planned: bool) -> int:
    """Pieces of each map that are convolved at once; 0 where maps are convolved whole."""
    if sizes.rows <= LONGEST:
        return 0
    # All, where each call would make the spectrum of the kernel anew.
    if not planned or sizes.device not in _AT_ONCE:
        return count(sizes.rows)
    numbers = max(sizes.batch * sizes.in_channels * PIECE * sizes.columns, 1)
    return min(max(_AT_ONCE[sizes.device] // numbers, 1), count(sizes.rows))


def cut_sizes(sizes: ConvSizes, at_once: int) -> ConvSizes:
    """Give the sizes of what `convolve` convolves at once."""
    if not at_once:
        return sizes
    rows = PIECE + 2 * (sizes.kernel_size // 2)
    return replace(sizes, batch=sizes.batch * at_once, rows=rows)


def convolve(x: Tensor, reach: int, at_once: int, conv: Callable[[Tensor], Tensor]) -> Tensor:
    """Convolve maps, (B, C, N_k, A), piece by piece, by what convolves maps of fewer starts.

    Args:
        x: Maps.
        reach: Cells that the kernel reaches to either side.
        at_once: Pieces of each map that are convolved at once; 0 for whole maps.
        conv: Convolves maps, or pieces of PIECE + 2 * reach starts, with zeros around them.
    """
    if not at_once:
        return conv(x)
    batch, _, rows, _ = x.shape
    found = []
    for first in range(0, count(rows), at_once):
        number = min(at_once, count(rows) - first)
        convolved = conv(cut(x, reach, first, number))
        own = convolved[:, :, reach : reach + PIECE]
        found.append(rearrange(own, "(p b) d n a -> a p n b d", b=batch, p=number))
    joined = torch.cat(found, dim=1).flatten(1, 2)
    return rearrange(joined[:, :rows], "a n b d -> b d n a")


def cut(x: Tensor, reach: int, first: int, number: int) -> Tensor:
    """Cut a `number` of pieces from the `first` on, with the starts around that a kernel reaches.

    Returns (number * B, C, PIECE + 2 * reach, A), durations outermost and channels innermost.
    """
    rows = x.shape[2]
    start, end = first * PIECE - reach, (first + number) * PIECE + reach
    # In this order of memory, pieces are copied in runs: padded as they come, cell by cell.
    inner = rearrange(x[:, :, max(start, 0) : min(end, rows)], "b c n a -> a n b c")
    if start < 0 or end > rows:
        # Not `F.pad`: torch 2.6 refuses maps of no samples.
        around = (max(-start, 0), max(end - rows, 0))
        before, after = (inner.new_zeros(len(inner), n, *inner.shape[2:]) for n in around)
        inner = torch.cat([before, inner, after], dim=1)
    pieces = inner.unfold(1, PIECE + 2 * reach, PIECE)
    return rearrange(
        rearrange(pieces, "a p b c n -> a n (p b) c").contiguous(), "a n b c -> b c n a"
    )
