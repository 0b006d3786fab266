"""Expected hits of many candidates: what `expected_hits.cover` defines, in less time and memory.

A CPU computes few gains: those of the last pick, and the matrix products of `_bound_gains`, bound
them. Tables of all pairs of candidates are kept from call to call. They would grow with the square
of the candidates; but moments that do not overlap are all alike, and so are pairs of moments that
are shifted together. So the candidates of a long video are put into blocks of starts that look the
same, and a table holds the pairs of one block with the blocks around it that its moments reach
into: it does not grow with the video.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tmapdiff._core.checks import check_shape
from tmapdiff.maps.overlap import temporal_iou

Elementwise = Callable[[Tensor], Tensor]
Excludes = Callable[[Tensor], Tensor]  # of picks, (B,): which candidates none may follow, (B, M)

_LARGEST_TABLE = 2**24  # numbers computed at once
_CACHED_ROWS = 2**19  # numbers in a table of queries x candidates that a CPU's cache holds
_REFRESHED = 2  # candidates whose gain is computed anew at once
_SPARSE = 1 / 8  # share of numbers that are not 0 below which a CPU multiplies those only
_KEPT_GRIDS, _LARGEST_KEPT = 4, 2**22  # tables that are kept, and numbers in the largest of them
_BLOCKS_OF_A_MOMENT = 4  # that the longest candidate lasts: fewer are larger tables, more products


class PairTable:
    """A number for all pairs of candidates: a symmetric table.

    Shape:
        - values: (M, M)
    """

    far = 0.0  # the number of pairs that do not overlap, at least

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def map(self, function: Elementwise) -> "PairTable":
        """Apply a function to all numbers."""
        return PairTable(function(self.values).to(self.values))

    def factor(self) -> Tensor:
        """Give what is quickest to multiply with."""
        return _product_form(self.values)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.values @ x

    def rows(self, places: Tensor) -> Tensor:
        """Give rows, (B, M), by their places, (B,)."""
        return self.values[places]

    def gains(self, chances: Tensor, covered: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Sum `chances * max(number - covered, 0)`, (B, M) each, over rows of the table.

        For the `rows` of chances, (n,), each over the rows of the table at its `places`, (n, c).
        What is `covered` is nowhere below `far`.
        """
        above = (self.values[places] - covered[rows, None]).clamp_(min=0)
        return torch.einsum("nm,ncm->nc", chances[rows], above)

    def all_gains(self, chances: Tensor, covered: Tensor) -> Tensor:
        """Do as `gains` for all rows of the table, (B, M)."""
        parts = [
            torch.einsum("bm,bcm->bc", chances, (some - covered[:, None]).clamp_(min=0))
            for some in self.values.split(max(1, _LARGEST_TABLE // max(chances.numel(), 1)))
        ]
        return torch.cat(parts, dim=1)


class PairBand:
    """A `PairTable` of the places of `CandidateBlocks`, with which it does not grow.

    Args:
        values: Numbers of a block's moments with those of the blocks around it.
        far: The number of pairs further apart.
        num_blocks: Blocks.

    Shape:
        - values: (2 * reach + 1, P, P)
        - far: (1,)
    """

    def __init__(self, values: Tensor, far: Tensor, num_blocks: int) -> None:
        self.values, self.far, self.num_blocks = values, far, num_blocks
        self.reach, self.size = len(values) // 2, values.shape[-1]

    def map(self, function: Elementwise) -> "PairBand":
        """Apply a function to all numbers."""
        values, far = (function(one).to(one) for one in (self.values, self.far))
        return PairBand(values, far, self.num_blocks)

    def factor(self) -> "PairBand":
        """Give what is quickest to multiply with."""
        return self

    @cached_property
    def _near(self) -> Tensor:
        """Numbers of a moment with all those in the blocks around it: (P, window)."""
        return rearrange(self.values, "shift p other -> p (shift other)")

    @cached_property
    def _factors(self) -> list[tuple[int, Tensor]]:
        """What pairs have above `far`, by shift, but for zeros."""
        parts = enumerate(self.values - self.far)
        on_cpu = self.far.device.type == "cpu"
        return [(k, _product_form(one)) for k, one in parts if not on_cpu or bool(one.any())]

    def __matmul__(self, x: Tensor) -> Tensor:
        blocks, batch = self.num_blocks, x.shape[1]
        inner = rearrange(x, "(n p) b -> p n b", n=blocks)
        padded = F.pad(inner, (0, 0, self.reach, self.reach)).flatten(1)
        product = x.new_zeros(self.size, blocks * batch)
        for shift, part in self._factors:
            product.addmm_(part, padded[:, shift * batch : (shift + blocks) * batch])
        product = rearrange(product, "p (n b) -> (n p) b", n=blocks)
        return product.add_(self.far * x.sum(dim=0))

    def rows(self, places: Tensor) -> Tensor:
        """Give rows, (B, M), by their places, (B,)."""
        window, outside = self._near.shape[1], self.reach * self.size
        length = self.num_blocks * self.size
        whole = self.far.expand(len(places), length + 2 * outside).clone()
        first = places // self.size * self.size
        columns = first[:, None] + torch.arange(window, device=places.device)
        whole.scatter_(1, columns, self._near[places % self.size])
        return whole[:, outside : outside + length]

    def gains(self, chances: Tensor, covered: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Do as `PairTable.gains`."""
        block = places // self.size
        above = self._near[places % self.size] - self._windows(covered)[rows[:, None], block]
        weights = self._windows(chances)[rows[:, None], block]
        return (above.clamp_(min=0) * weights).sum(dim=-1)

    def all_gains(self, chances: Tensor, covered: Tensor) -> Tensor:
        """Do as `gains` for all rows of the table, (B, M)."""
        at_once = max(1, _LARGEST_TABLE // (len(chances) * self._near.numel()))
        windows = (self._windows(one).split(at_once, dim=1) for one in (chances, covered))
        parts = [
            torch.einsum("bnw,bnpw->bnp", weights, (self._near - known[:, :, None]).clamp_(min=0))
            for weights, known in zip(*windows, strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(1)

    def _windows(self, x: Tensor) -> Tensor:
        """View of each block with the blocks around it: (B, blocks, window)."""
        outside = self.reach * self.size
        return F.pad(x, (outside, outside)).unfold(1, self._near.shape[1], self.size)


def _product_form(matrix: Tensor) -> Tensor:
    """Make a matrix sparse where it has zeros enough for a CPU's products to be faster."""
    if not _may_wait(matrix) or int(matrix.count_nonzero()) > _SPARSE * matrix.numel():
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


def _may_wait(tensor: Tensor) -> bool:
    """Whether values may be looked at: on other devices the host would wait for them."""
    return tensor.device.type == "cpu"


def rows_at_once(scores: Tensor) -> int:
    """Count the rows of scores, (B, M), that are best read at once."""
    numbers = _CACHED_ROWS if _may_wait(scores) else _LARGEST_TABLE
    return max(1, numbers // scores.shape[1])


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
        """Put candidates, (M, 2), into blocks; None where that saves nothing. Waits for them."""
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
        """Put scores of candidates, (B, M), into the blocks: -inf where there is no candidate."""
        spread = scores.new_full((len(scores), self.num_blocks * len(self.moments)), -torch.inf)
        return spread.index_copy_(1, self.places, scores)

    def gather(self, picks: Tensor) -> Tensor:
        """Find the candidates at places, (B, n); -1 stays."""
        candidates = self.places.new_full((self.num_blocks * len(self.moments),), -1)
        candidates[self.places] = torch.arange(len(self.places), device=self.places.device)
        return candidates[picks.clamp(min=0)].where(picks >= 0, -1)

    def ious(self, dtype: torch.dtype) -> PairBand:
        """Compute the IoU of all pairs."""
        shifts = torch.arange(-self.reach, self.reach + 1, device=self.moments.device)
        others = self.moments + (shifts * self.period)[:, None, None]
        iou = temporal_iou(self.moments[:, None].to(dtype), others[:, None].to(dtype))
        return PairBand(iou, iou.new_zeros(1), self.num_blocks)


class Layer(NamedTuple):
    """Part of the hits: 1 where they are `high` or more, 0 from a layer's width below."""

    table: Tensor | PairBand
    high: float


@dataclass(frozen=True)
class Tables:
    """What the answers need to know of pairs of candidates.

    Attributes:
        response: What each cell holds if the moment is that of another.
        hits: How much each candidate counts if the moment is that of another.
        layers: The hits as a sum, to bound gains; none where no result may be waited for.
        width: Height of a layer.
        blocks: Where candidates have places, if they do.
    """

    response: Tensor | PairBand
    hits: PairTable | PairBand
    layers: tuple[Layer, ...]
    width: float
    blocks: CandidateBlocks | None = None

    def cover(
        self,
        likelihood: Tensor,
        valid: Tensor,
        top_n: int,
        first: Tensor | None = None,
        excludes: Excludes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do as `expected_hits.cover`."""
        # Gains only fall from pick to pick: an old one bounds the new one.
        bounds = (self.hits @ likelihood.T).T.masked_fill(~valid, -torch.inf)
        covered = torch.zeros_like(likelihood)
        picks, gains = [], []
        for place in range(top_n):
            if place and self.layers:
                bounds = bounds.minimum(self._bound_gains(likelihood, covered))
                self._settle_highest(bounds, likelihood, covered)
            elif place:
                bounds = bounds.minimum(self.hits.all_gains(likelihood, covered))
            best, index = bounds.max(dim=1)
            if first is not None and not place:
                best, index = bounds.gather(1, first[:, None])[:, 0], first
            picks.append(index.where(best > -torch.inf, -1))
            gains.append(best)
            covered = covered.maximum(self.hits.rows(index))
            bounds = bounds.scatter(1, index[:, None], -torch.inf)
            if excludes is not None:
                bounds = bounds.masked_fill(excludes(index), -torch.inf)
        return torch.stack(picks, dim=1), torch.stack(gains, dim=1)

    def _bound_gains(self, likelihood: Tensor, covered: Tensor) -> Tensor:
        """Bound what each candidate would add, from above.

        In a layer, max(hit - covered, 0) is convex in the hit, hence at most its chord
        hit * (1 - covered): a matrix product. Off by little, as few pairs meet inside a layer.
        """
        # A query a column, as a sparse matrix is multiplied from the left.
        chances, known = likelihood.T.contiguous(), covered.T.contiguous()
        bounds = torch.zeros_like(chances)
        for layer in self.layers:
            uncovered = (layer.high - known).clamp_(0, self.width)
            bounds += layer.table @ uncovered.mul_(chances)
        return bounds.T

    def _settle_highest(self, bounds: Tensor, likelihood: Tensor, covered: Tensor) -> None:
        """Replace the highest bounds of each row by the gains, until a gain is the highest."""
        fresh = torch.zeros_like(bounds, dtype=torch.bool)
        rows = torch.arange(len(bounds))
        while True:
            best, some = bounds[rows].topk(min(_REFRESHED, bounds.shape[1]), dim=1)
            open_ = ~fresh[rows, some[:, 0]] & (best[:, 0] > -torch.inf)
            rows, best, some = rows[open_], best[open_], some[open_]
            if not len(rows):
                return
            renewed = self.hits.gains(likelihood, covered, rows, some)
            # What is left out stays left out, and what was fresh already keeps its gain.
            bounds[rows[:, None], some] = renewed.minimum(best)
            fresh[rows[:, None], some] = True


def tables_of(
    who: str,
    candidates: Tensor,
    target: Elementwise,
    hits: Elementwise,
    num_layers: int,
    dtype: torch.dtype,
) -> Tables:
    """Make the tables of `candidates`, (M, 2), or find those of the same values.

    Both functions are of the IoU, computed in `dtype`: `target` is what cells hold, and `hits` how
    much moments count, in as many steps as there are pairs of layers. `who` is named in errors.
    """
    many = len(candidates) ** 2 > _LARGEST_KEPT
    blocks = CandidateBlocks.find(candidates) if many else None
    if blocks is not None:
        ious = blocks.ious(dtype)
        return _made(ious.map(target), ious.map(hits), num_layers, blocks)
    candidates = candidates.double()
    if many or not _may_wait(candidates):
        table = PairTable(_pair_ious(candidates, dtype))
        return _made(table.map(target), table.map(hits), num_layers)
    # Kept by the values that determine them: a function may change what it does.
    cells = candidates.detach().numpy().tobytes()
    distinct = _distinct_ious(cells, dtype)
    values = [function(distinct).to(dtype) for function in (target, hits)]
    check_shape(who, "target(iou)", values[0], f"{len(distinct)}")
    return _kept_tables(cells, dtype, *(one.numpy().tobytes() for one in values), num_layers)


def response_of(
    who: str,
    candidates: Tensor,
    target: Elementwise,
    hits: Elementwise,
    num_layers: int,
    dtype: torch.dtype,
) -> tuple[Tensor | PairBand, CandidateBlocks | None]:
    """Give the `response` of `tables_of` and its `blocks`: of many candidates, without the rest."""
    if len(candidates) ** 2 <= _LARGEST_KEPT:
        tables = tables_of(who, candidates, target, hits, num_layers, dtype)
        return tables.response, tables.blocks
    blocks = CandidateBlocks.find(candidates)
    if blocks is not None:
        return blocks.ious(dtype).map(target).factor(), blocks
    return PairTable(_pair_ious(candidates.double(), dtype)).map(target).factor(), None


def _made(
    response: PairTable | PairBand,
    hits: PairTable | PairBand,
    num_layers: int,
    blocks: CandidateBlocks | None = None,
) -> Tables:
    # Hits rise in as many steps as there are thresholds: layers end on the flats and between. They
    # begin with what all moments are covered by after the first pick: else the many that are far
    # from it would all be bounded by a little too much.
    width = 1 / num_layers

    def layer(index: int) -> Layer:
        low = width * index + float(hits.far)
        table = hits.map(lambda values: ((values - low) / width).clamp(0, 1))
        return Layer(table.factor(), low + width)

    layers = tuple(map(layer, range(num_layers))) if _may_wait(hits.values) else ()
    return Tables(response.factor(), hits, layers, width, blocks)


def _pair_ious(candidates: Tensor, dtype: torch.dtype) -> Tensor:
    moments = candidates.to(dtype)
    return temporal_iou(moments[:, None], moments)


def _read(numbers: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(numbers), dtype=dtype)


@lru_cache(maxsize=_KEPT_GRIDS)
def _distinct_ious(cells: bytes, dtype: torch.dtype) -> Tensor:
    return _pair_ious(_read(cells, torch.float64).view(-1, 2), dtype).unique()


@lru_cache(maxsize=_KEPT_GRIDS)
def _kept_tables(
    cells: bytes, dtype: torch.dtype, response: bytes, hits: bytes, num_layers: int
) -> Tables:
    iou = _pair_ious(_read(cells, torch.float64).view(-1, 2), dtype)
    index = torch.searchsorted(_distinct_ious(cells, dtype), iou)
    response_table, hits_table = (PairTable(_read(one, dtype)[index]) for one in (response, hits))
    return _made(response_table, hits_table, num_layers)
