"""Long maps, cut into pieces that are convolved like a batch.

A transform is a dense matrix over all starts that it reads: of one map of N starts it grows with
N^2, of pieces of one length with N. Each piece takes along the starts around it that its cells
read; what is computed of those is dropped.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

LONGEST = 256  # starts of the longest map that is transformed whole
PIECE = 128  # starts of a piece


def count(rows: int) -> int:
    """Pieces of a map of so many starts."""
    return -(-rows // PIECE)


def cut(x: Tensor, reach: int) -> Tensor:
    """Cut maps into pieces, with the starts around each that a kernel reaches.

    Args:
        x: Maps.
        reach: Cells that the kernel reaches to either side.

    Shape:
        - x: (B, C, N_k, A)
        - returns: (pieces * B, C, PIECE + 2 * reach, A), durations outermost and channels innermost
          in memory
    """
    filling = count(x.shape[2]) * PIECE - x.shape[2]
    padded = F.pad(x, (0, 0, reach, reach + filling))
    pieces = padded.unfold(2, PIECE + 2 * reach, PIECE)
    inner = rearrange(pieces, "b c p a n -> a n (p b) c").contiguous()
    return rearrange(inner, "a n b c -> b c n a")


def join(pieces: Tensor, batch: int, rows: int, reach: int) -> Tensor:
    """Put convolved pieces together; the inverse of `cut`.

    Shape:
        - pieces: (pieces * batch, D, PIECE + 2 * reach, A)
        - returns: (batch, D, rows, A), in memory as the pieces
    """
    own = pieces[:, :, reach : reach + PIECE]
    joined = rearrange(own, "(p b) d n a -> a (p n) b d", p=count(rows), b=batch)
    return rearrange(joined[:, :rows], "a n b d -> b d n a")
