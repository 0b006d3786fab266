"""A faster, smaller implementation of `expected_hits.cover` for many candidates.

On a CPU, few gains are computed exactly: those of the last pick, and the matrix products of
`_bound_gains`, bound the others. Tables over pairs of candidates are cached between calls. Their
size would be quadratic in the candidates, but pairs that do not overlap all have the same value,
and pairs that are shifted together have equal ones. So candidates of a long video are grouped into
identical blocks of starts, and a table holds one block against those its moments can overlap. Its
size does not depend on the video's length.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tmapdiff._core.checks import check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.overlap import soft_hits, temporal_iou

Elementwise = Callable[[Tensor], Tensor]
Excludes = Callable[[Tensor], Tensor]  # from picks, (B,), to candidates that they rule out, (B, M)

_LARGEST_TABLE = 2**24  # numbers computed together
_CACHED_ROWS = 2**19  # numbers of a queries x candidates table that fit a CPU's cache
_REFRESHED = 2  # candidates whose gains are recomputed together
_SPARSE = 1 / 8  # share of nonzeros below which a CPU uses sparse products
_KEPT_GRIDS, _LARGEST_KEPT = 4, 2**22  # cached tables, and numbers in the largest
# Blocks that the longest moment spans: fewer make larger tables, more make more products.
_BLOCKS_PER_MOMENT = 4


class PairTable:
    """A symmetric table, (M, M), with a number for each pair of candidates."""

    far = 0.0  # lower bound of the numbers

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def map(self, function: Elementwise) -> "PairTable":
        """Apply a function to all numbers."""
        return PairTable(function(self.values).to(self.values))

    def factor(self) -> Tensor:
        """Return the form that is fastest to multiply with."""
        return _product_form(self.values)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.values @ x

    def rows(self, places: Tensor) -> Tensor:
        """Return the rows, (B, M), at `places`, (B,)."""
        return self.values[places]

    def gains(self, chances: Tensor, covered: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Sum `chances * max(number - covered, 0)` over rows of the table at `places`, (n, c)."""
        above = (self.values[places] - covered[rows, None]).clamp_(min=0)
        return torch.einsum("nm,ncm->nc", chances[rows], above)

    def all_gains(self, chances: Tensor, covered: Tensor) -> Tensor:
        """Compute `gains` for all rows of the table, (B, M)."""
        parts = [
            torch.einsum("bm,bcm->bc", chances, (some - covered[:, None]).clamp_(min=0))
            for some in self.values.split(max(1, _LARGEST_TABLE // max(chances.numel(), 1)))
        ]
        return torch.cat(parts, dim=1)


class PairBand:
    """A `PairTable` for `CandidateBlocks`, of a size that does not depend on their number.

    `values`, (2 * reach + 1, P, P), are for a block's P moments and those of nearby blocks, and
    `far`, (1,), is for pairs further apart.
    """

    def __init__(self, values: Tensor, far: Tensor, num_blocks: int) -> None:
        self.values, self.far, self.num_blocks = values, far, num_blocks
        self.reach, self.size = len(values) // 2, values.shape[-1]

    def map(self, function: Elementwise) -> "PairBand":
        """Apply a function to all numbers."""
        values, far = (function(one).to(one) for one in (self.values, self.far))
        return PairBand(values, far, self.num_blocks)

    def factor(self) -> "PairBand":
        """Return the form that is fastest to multiply with."""
        return self

    @cached_property
    def _near(self) -> Tensor:
        """Numbers for each moment of a block and all moments of nearby blocks: (P, window)."""
        return rearrange(self.values, "shift p other -> p (shift other)")

    @cached_property
    def _factors(self) -> list[tuple[int, Tensor]]:
        """Nonzero parts of `values - far`, by shift."""
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
        """Return the rows, (B, M), at `places`, (B,)."""
        window, outside = self._near.shape[1], self.reach * self.size
        length = self.num_blocks * self.size
        whole = self.far.expand(len(places), length + 2 * outside).clone()
        first = places // self.size * self.size
        columns = first[:, None] + torch.arange(window, device=places.device)
        whole.scatter_(1, columns, self._near[places % self.size])
        return whole[:, outside : outside + length]

    def gains(self, chances: Tensor, covered: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Compute `PairTable.gains`."""
        block = places // self.size
        above = self._near[places % self.size] - self._windows(covered)[rows[:, None], block]
        weights = self._windows(chances)[rows[:, None], block]
        return (above.clamp_(min=0) * weights).sum(dim=-1)

    def all_gains(self, chances: Tensor, covered: Tensor) -> Tensor:
        """Compute `gains` for all rows of the table, (B, M)."""
        at_once = max(1, _LARGEST_TABLE // (len(chances) * self._near.numel()))
        windows = (self._windows(one).split(at_once, dim=1) for one in (chances, covered))
        parts = [
            torch.einsum("bnw,bnpw->bnp", weights, (self._near - known[:, :, None]).clamp_(min=0))
            for weights, known in zip(*windows, strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(1)

    def _windows(self, x: Tensor) -> Tensor:
        """Return a view of each block with its nearby blocks: (B, blocks, window)."""
        outside = self.reach * self.size
        return F.pad(x, (outside, outside)).unfold(1, self._near.shape[1], self.size)


def _product_form(matrix: Tensor) -> Tensor:
    """Make a matrix sparse if that speeds up products on a CPU."""
    if not _may_wait(matrix) or int(matrix.count_nonzero()) > _SPARSE * matrix.numel():
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


def _may_wait(tensor: Tensor) -> bool:
    """Whether reading values is cheap; on other devices it synchronizes."""
    return tensor.device.type == "cpu"


def rows_at_once(scores: Tensor) -> int:
    """Return how many rows of scores, (B, M), to process together."""
    numbers = _CACHED_ROWS if _may_wait(scores) else _LARGEST_TABLE
    return max(1, numbers // scores.shape[1])


@dataclass(frozen=True)
class CandidateBlocks:
    """Candidates grouped into identical blocks of starts."""

    moments: Tensor  # of the first block, (P, 2)
    period: int  # clips from one block to the next
    num_blocks: int
    reach: int  # blocks to either side that moments of a block may overlap
    places: Tensor  # of each candidate in the concatenated blocks, (M,)

    @classmethod
    def find(cls, candidates: Tensor) -> "CandidateBlocks | None":
        """Group candidates, (M, 2); return None if that saves nothing. Synchronizes."""
        moments = candidates.cpu().double()
        start, end = moments.unbind(-1)
        longest = float((end - start).max())
        if not (bool((moments == moments.floor()).all()) and bool((end > start).all())):
            return None
        period = 1
        while _BLOCKS_PER_MOMENT * period < longest:
            period *= 2
        first = start.min()
        block, offset = (start - first).div(period, rounding_mode="floor"), (start - first) % period
        # Sorted by start, then by duration.
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
        """Scatter scores of candidates, (B, M), into the blocks; -inf where there is none."""
        spread = scores.new_full((len(scores), self.num_blocks * len(self.moments)), -torch.inf)
        return spread.index_copy_(1, self.places, scores)

    def candidates(self, picks: Tensor) -> Tensor:
        """Return the candidates at places in the blocks, (B, n); -1 stays."""
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
    """A layer of the hits: 1 where they are at least `high`, 0 from one layer's width below."""

    table: Tensor | PairBand
    high: float


@dataclass(frozen=True)
class Tables:
    """Tables over pairs of candidates: what each cell holds if another is the true moment."""

    response: Tensor | PairBand  # the target
    hits: PairTable | PairBand  # how much it counts
    num_layers: int  # two for each step of the hits
    blocks: CandidateBlocks | None = None  # if candidates are grouped

    @cached_property
    def layers(self) -> list[Layer]:
        """Layers that sum to the hits, to bound gains; none on devices other than the CPU.

        Hits rise in one step per threshold; layers end on the plateaus and midway between. They
        start at `far`, which covers all moments after the first pick. Starting at 0 would loosen
        the bounds of the many moments far from it.
        """
        if not _may_wait(self.hits.values):
            return []
        width = 1 / self.num_layers

        def layer(index: int) -> Layer:
            low = width * index + float(self.hits.far)
            table = self.hits.map(lambda values: ((values - low) / width).clamp(0, 1))
            return Layer(table.factor(), low + width)

        return [layer(index) for index in range(self.num_layers)]

    def spread(self, scores: Tensor) -> Tensor:
        """Put scores of candidates, (B, M), in the order of the tables."""
        return scores if self.blocks is None else self.blocks.spread(scores)

    def gather(self, values: Tensor) -> Tensor:
        """Undo `spread`."""
        return values if self.blocks is None else values[:, self.blocks.places]

    def cover(
        self,
        likelihood: Tensor,
        valid: Tensor,
        top_n: int,
        first: Tensor | None = None,
        excludes: Excludes | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute `expected_hits.cover`; only picks are in the order of the candidates."""
        # Gains never rise from pick to pick, so an old one bounds the new one.
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
                index = first if self.blocks is None else self.blocks.places[first]
                best = bounds.gather(1, index[:, None])[:, 0]
            picks.append(index.where(best > -torch.inf, -1))
            gains.append(best)
            covered = covered.maximum(self.hits.rows(index))
            bounds = bounds.scatter(1, index[:, None], -torch.inf)
            if excludes is not None:
                bounds = bounds.masked_fill(excludes(index), -torch.inf)
        found = torch.stack(picks, dim=1)
        if self.blocks is not None:
            found = self.blocks.candidates(found)
        return found, torch.stack(gains, dim=1)

    def _bound_gains(self, likelihood: Tensor, covered: Tensor) -> Tensor:
        """Compute upper bounds of each candidate's gain.

        Within a layer, max(hit - covered, 0) is convex in the hit, hence at most its chord
        hit * (1 - covered): a matrix product. The bound is tight, as few pairs fall inside a layer.
        """
        # One column per query, as sparse matrices multiply from the left.
        chances, known = likelihood.T.contiguous(), covered.T.contiguous()
        bounds = torch.zeros_like(chances)
        for layer in self.layers:
            uncovered = (layer.high - known).clamp_(0, 1 / self.num_layers)
            bounds += layer.table @ uncovered.mul_(chances)
        return bounds.T

    def _settle_highest(self, bounds: Tensor, likelihood: Tensor, covered: Tensor) -> None:
        """Replace the highest bounds of each row by gains, until the highest value is a gain."""
        fresh = torch.zeros_like(bounds, dtype=torch.bool)
        rows = torch.arange(len(bounds))
        while True:
            best, some = bounds[rows].topk(min(_REFRESHED, bounds.shape[1]), dim=1)
            open_ = ~fresh[rows, some[:, 0]] & (best[:, 0] > -torch.inf)
            rows, best, some = rows[open_], best[open_], some[open_]
            if not len(rows):
                return
            renewed = self.hits.gains(likelihood, covered, rows, some)
            # Excluded candidates stay excluded, and fresh ones keep their gains.
            bounds[rows[:, None], some] = renewed.minimum(best)
            fresh[rows[:, None], some] = True


def tables_of(
    who: str,
    candidates: Tensor,
    target: Elementwise,
    dtype: torch.dtype,
    thresholds: Sequence[float] = (0.5, 0.7),
) -> Tables:
    """Return the tables of `candidates`, (M, 2), for `soft_hits` above `thresholds`; cached.

    Raise ArgumentError or ShapeError unless `target` is an elementwise function.
    """
    if not callable(target):
        hint = "Pass a function of the IoU, such as get_objective('mse-rescaled').target."
        raise ArgumentError(message(who, "target to be a function", repr(target), hint))
    hits, num_layers = partial(soft_hits, thresholds=thresholds), 2 * len(thresholds)
    many = len(candidates) ** 2 > _LARGEST_KEPT
    blocks = CandidateBlocks.find(candidates) if many else None
    if blocks is not None:
        ious = blocks.ious(dtype)
        return Tables(ious.map(target).factor(), ious.map(hits), num_layers, blocks)
    candidates = candidates.double()
    if many or not _may_wait(candidates):
        table = PairTable(_pair_ious(candidates, dtype))
        return Tables(table.map(target).factor(), table.map(hits), num_layers)
    # Cached by the functions' values, as a function may change its behavior.
    cells = candidates.detach().numpy().tobytes()
    distinct = _distinct_ious(cells, dtype)
    values = [function(distinct).to(dtype) for function in (target, hits)]
    check_shape(who, "target(iou)", values[0], f"{len(distinct)}")
    return _kept_tables(cells, dtype, *(one.numpy().tobytes() for one in values), num_layers)


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
    return Tables(response_table.factor(), hits_table, num_layers)
