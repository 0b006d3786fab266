"""Numbers for all pairs of many candidate moments, kept once for pairs that are alike.

A table of all pairs grows with the square of the candidates. But moments that do not overlap are
all alike, and so are pairs of moments that are shifted together. So the candidates of a long video
are put into blocks of starts that look the same, and a table holds the pairs of one block with the
blocks around it that its moments reach into: it does not grow with the video.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tmapdiff.maps.overlap import temporal_iou

_BLOCKS_OF_A_MOMENT = 4  # that the longest candidate lasts: fewer are larger tables, more products
_SPARSE = 1 / 8  # share of numbers that are not 0 below which a CPU multiplies those only
_LARGEST_TABLE = 2**24  # numbers computed at once


@dataclass(frozen=True)
class CandidateBlocks:
    """Candidates as equal blocks of starts.

    Args:
        moments: Moments of the first block.
        period: Clips from one block to the next.
        num_blocks: Blocks.
        reach: Blocks to either side that moments of a block may overlap.
        places: Where each candidate is in the blocks, one after another.

    Shape:
        - moments: (P, 2)
        - places: (M,)
    """

    moments: Tensor
    period: int
    num_blocks: int
    reach: int
    places: Tensor

    @classmethod
    def find(cls, candidates: Tensor) -> "CandidateBlocks | None":
        """Put candidates into blocks; None where that saves nothing. Waits for their device.

        Shape:
            - candidates: (M, 2)
        """
        moments = candidates.cpu().double()
        start, end = moments.unbind(-1)
        longest = float((end - start).max())
        if not (bool((moments == moments.floor()).all()) and bool((end > start).all())):
            return None
        period = 1
        while _BLOCKS_OF_A_MOMENT * period < longest:
            period *= 2
        first = start.min()
        block, offset = (start - first).div(period, rounding_mode="floor"), (start - first) % period
        # By start, then by duration.
        keys, slot = (offset * (longest + 1) + end - start).unique(return_inverse=True)
        num_blocks, reach = int(block.max()) + 1, (int(longest) + period - 2) // period
        places = block.long() * len(keys) + slot
        table = len(keys) * (2 * reach + 1)
        if table > len(moments) or len(places.unique()) < len(places):
            return None
        starts = (keys / (longest + 1)).floor()
        slots = torch.stack([starts, starts + keys % (longest + 1)], dim=-1)
        device = candidates.device
        return cls(slots.to(device), period, num_blocks, reach, places.to(device))

    def spread(self, scores: Tensor) -> Tensor:
        """Put scores of candidates into the blocks.

        Shape:
            - scores: (B, M)
            - returns: (B, places), -inf where there is no candidate
        """
        spread = scores.new_full((len(scores), self.num_blocks * len(self.moments)), -torch.inf)
        return spread.index_copy_(1, self.places, scores)

    def gather(self, picks: Tensor) -> Tensor:
        """Find the candidates at places; -1 stays.

        Shape:
            - picks: (B, n)
        """
        size = self.num_blocks * len(self.moments)
        candidates = self.places.new_full((size,), -1)
        candidates[self.places] = torch.arange(len(self.places), device=self.places.device)
        return candidates[picks.clamp(min=0)].where(picks >= 0, -1)

    def table(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> "PairBand":
        """Make the table of an elementwise function of the IoU of all pairs.

        Args:
            function: The function.
            dtype: In which IoU is computed.
        """
        shifts = torch.arange(-self.reach, self.reach + 1, device=self.moments.device)
        others = self.moments + (shifts * self.period)[:, None, None]
        iou = temporal_iou(self.moments[:, None].to(dtype), others[:, None].to(dtype))
        # (shift, moment, other)
        far = function(iou.new_zeros(1)).to(dtype)
        return PairBand(function(iou).to(dtype) - far, far, self.num_blocks)


class PairBand:
    """A number for all pairs of places, as `CandidateBlocks` makes it: a symmetric table.

    Args:
        parts: What pairs of a block with the blocks around it have above `far`.
        far: The number of pairs further apart.
        num_blocks: Blocks.

    Shape:
        - parts: (2 * reach + 1, P, P)
        - far: (1,)
    """

    def __init__(self, parts: Tensor, far: Tensor, num_blocks: int) -> None:
        self.parts, self.far, self.num_blocks = parts, far, num_blocks
        self.reach, self.size = len(parts) // 2, parts.shape[-1]

    @property
    def places(self) -> int:
        """Rows of the table, and columns."""
        return self.num_blocks * self.size

    @cached_property
    def _near(self) -> Tensor:
        """Numbers of a moment with all those in the blocks around it: (P, window)."""
        return rearrange(self.parts, "shift p other -> p (shift other)") + self.far

    @cached_property
    def _factors(self) -> list[tuple[int, Tensor]]:
        """Parts that are not 0, by shift; sparse, if that is faster."""
        kept = []
        for shift, part in enumerate(self.parts):
            if part.device.type != "cpu":
                kept.append((shift, part))
            elif count := int(part.count_nonzero()):
                kept.append((shift, as_sparse(part) if count <= _SPARSE * part.numel() else part))
        return kept

    def __matmul__(self, x: Tensor) -> Tensor:
        """Multiply with a matrix.

        Shape:
            - x: (places, B)
            - returns: (places, B)
        """
        blocks, batch = self.num_blocks, x.shape[1]
        inner = rearrange(x, "(n p) b -> p n b", n=blocks)
        padded = F.pad(inner, (0, 0, self.reach, self.reach)).flatten(1)
        product = x.new_zeros(self.size, blocks * batch)
        for shift, part in self._factors:
            product.addmm_(part, padded[:, shift * batch : (shift + blocks) * batch])
        product = rearrange(product, "p (n b) -> (n p) b", n=blocks)
        return product.add_(self.far * x.sum(dim=0))

    def rows(self, places: Tensor) -> Tensor:
        """Give whole rows.

        Shape:
            - places: (B,)
            - returns: (B, places)
        """
        window = self._near.shape[1]
        whole = self.far.new_empty(len(places), self.places + window - self.size)
        whole[:] = self.far
        first = places // self.size * self.size
        columns = first[:, None] + torch.arange(window, device=places.device)
        whole.scatter_(1, columns, self._near[places % self.size])
        return whole[:, self.reach * self.size :][:, : self.places]

    def gains(self, chances: Tensor, covered: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Sum `chances * max(number - covered, 0)` over the table's row, for some of its rows.

        Args:
            chances: Weights of the sum.
            covered: What numbers have to exceed; nowhere below `far`.
            rows: Which chances and covered.
            places: Rows of the table, for each of these.

        Shape:
            - chances, covered: (B, places)
            - rows: (n,)
            - places: (n, c)
            - returns: (n, c)
        """
        block = places // self.size
        above = self._near[places % self.size] - self._windows(covered)[rows[:, None], block]
        weights = self._windows(chances)[rows[:, None], block]
        return (above.clamp_(min=0) * weights).sum(dim=-1)

    def all_gains(self, chances: Tensor, covered: Tensor) -> Tensor:
        """Do the same as `gains` for all rows of the table.

        Shape:
            - chances, covered: (B, places)
            - returns: (B, places)
        """
        at_once = max(1, _LARGEST_TABLE // (len(chances) * self._near.numel()))
        parts = [
            torch.einsum("bnw,bnpw->bnp", weights, (self._near - known[:, :, None]).clamp_(min=0))
            for weights, known in zip(
                self._windows(chances).split(at_once, dim=1),
                self._windows(covered).split(at_once, dim=1),
                strict=True,
            )
        ]
        return torch.cat(parts, dim=1).flatten(1)

    def _windows(self, x: Tensor) -> Tensor:
        """View of each block with the blocks around it: (B, blocks, window)."""
        outside = self.reach * self.size
        return F.pad(x, (outside, outside)).unfold(1, self._near.shape[1], self.size)


def as_sparse(matrix: Tensor) -> Tensor:
    """Make a matrix sparse."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()
