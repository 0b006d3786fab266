"""Cutting long maps into pieces that are convolved as a batch.

A transform is a dense matrix over the starts that it reads, so its cost is quadratic in the starts
of a map, but linear with pieces of fixed length. Each piece includes the surrounding starts that
its cells depend on, whose results are dropped. A CPU convolves a few pieces at a time: the spectra
of all would be far larger than the map, and fresh memory costs more than arithmetic.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from tmapdiff.kernels.map_conv.costs import ConvSizes

LONGEST = 256  # starts of the longest map that is transformed whole
PIECE = 128  # starts per piece
_AT_ONCE = {"cpu": 2**21}  # numbers in the pieces convolved together; other devices: all pieces


def count(rows: int) -> int:
    """Return the number of pieces of a map with `rows` starts."""
    return -(-rows // PIECE)


def at_once(sizes: ConvSizes, *, planned: bool) -> int:
    """Return how many pieces of each map are convolved together; 0 means whole maps."""
    if sizes.rows <= LONGEST:
        return 0
    # All, if each call would recompute the kernel's spectrum.
    if not planned or sizes.device not in _AT_ONCE:
        return count(sizes.rows)
    numbers = max(sizes.batch * sizes.in_channels * PIECE * sizes.columns, 1)
    return min(max(_AT_ONCE[sizes.device] // numbers, 1), count(sizes.rows))


def cut_sizes(sizes: ConvSizes, at_once: int) -> ConvSizes:
    """Return the sizes of the convolutions in `convolve`."""
    if not at_once:
        return sizes
    rows = PIECE + 2 * (sizes.kernel_size // 2)
    return replace(sizes, batch=sizes.batch * at_once, rows=rows)


def convolve(x: Tensor, reach: int, at_once: int, conv: Callable[[Tensor], Tensor]) -> Tensor:
    """Convolve maps, (B, C, N_k, A), with `at_once` pieces of each together; 0 for whole maps.

    `conv` convolves maps, or pieces of PIECE + 2 * reach starts, with zero padding.
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
    """Cut `number` pieces from `first` on, each with the surrounding starts that a kernel reaches.

    Returns (number * B, C, PIECE + 2 * reach, A), durations outermost and channels innermost.
    """
    rows = x.shape[2]
    start, end = first * PIECE - reach, (first + number) * PIECE + reach
    # Reorder before padding: in this memory order, copies are contiguous.
    inner = rearrange(x[:, :, max(start, 0) : min(end, rows)], "b c n a -> a n b c")
    if start < 0 or end > rows:
        # Not `F.pad`, as torch 2.6 rejects empty batches.
        around = (max(-start, 0), max(end - rows, 0))
        before, after = (inner.new_zeros(len(inner), n, *inner.shape[2:]) for n in around)
        inner = torch.cat([before, inner, after], dim=1)
    pieces = inner.unfold(1, PIECE + 2 * reach, PIECE)
    return rearrange(
        rearrange(pieces, "a p b c n -> a n (p b) c").contiguous(), "a n b c -> b c n a"
    )
