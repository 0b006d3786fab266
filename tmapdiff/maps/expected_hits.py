"""From a map to the moments that are likeliest to hit: deconvolution, then greedy coverage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tmapdiff._core.checks import check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.moments import (
    RankedMoments,
    answer_moments,
    check_candidates,
    check_scored,
)
from tmapdiff.maps.overlap import temporal_iou
from tmapdiff.maps.expected_hits_fast import CandidateBlocks, PairBand, as_sparse

_FLOOR = 1e-6  # of predicted scores: a moment is never ruled out by a single cell
_LARGEST_TABLE = 2**24  # numbers in a table of queries x moments x candidates
_CACHED_ROWS = 2**19  # numbers in a table of queries x candidates that a CPU's cache holds
_REFRESHED = 2  # candidates whose gain is computed anew at once
_SPARSE = 1 / 8  # share of numbers that are not 0 below which a CPU multiplies those only
_KEPT_GRIDS, _LARGEST_KEPT = 4, 2**22  # tables that are kept, and numbers in the largest of them


def deconvolve_map(
    scores: Tensor, response: Tensor, valid: Tensor | None = None, *, num_iterations: int = 20
) -> Tensor:
    """Find how likely each moment is, from the map that is expected of such a moment.

    A map that was learned by squared error or cross-entropy is an expectation: each cell holds the
    mean, over the moments that the query may mean, of what the cell would hold if it meant that
    one. This finds those moments' probabilities by Richardson and Lucy's iteration, which starts
    from equal ones, keeps them positive, and sharpens them the more the longer it runs. Twenty
    iterations do for the rescaled IoU; the full IoU is broader and asks for hundreds.

    Args:
        scores: The map's cells; negative ones and NaN count as 0.
        response: What each cell holds, column, if the moment is that of a cell, row; not negative.
        valid: Which cells are candidates. All, if None.
        num_iterations: Iterations.

    Shape:
        - scores: (B, M)
        - response: (M, M)
        - valid: (B, M), bool
        - returns: (B, M), sums to 1 at most, 0 where not valid

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `valid` is not bool, or `num_iterations` is below 1.

    Source: Richardson, doi 10.1364/JOSA.62.000055; Lucy, doi 10.1086/111605.
    """
    who = "deconvolve_map"
    sizes = check_shape(who, "scores", scores, "B M")
    check_shape(who, "response", response, "M M", sizes)
    if valid is None:
        valid = torch.ones_like(scores, dtype=torch.bool)
    check_shape(who, "valid", valid, "B M", sizes)
    if valid.dtype != torch.bool:
        raise ArgumentError(message(who, "bool valid", valid.dtype))
    check_int(who, "num_iterations", num_iterations, at_least=1)
    # In full precision also where the model's forward pass is not: the answers depend on it.
    with torch.autocast(scores.device.type, enabled=False):
        observed = scores.to(response)
        return _deconvolve(observed, valid, response.T, response, num_iterations)


def _deconvolve(
    scores: Tensor,
    valid: Tensor,
    response: Tensor | PairBand,
    adjoint: Tensor | PairBand,
    num_iterations: int,
) -> Tensor:
    """Iterate; `response` maps a column of likelihoods to its cells, `adjoint` is its transpose."""
    # A query a column, as a sparse matrix is multiplied from the left.
    inside = valid.T.to(scores.dtype, memory_format=torch.contiguous_format)
    observed = scores.masked_fill(~valid, 0).nan_to_num().clamp(min=0).T.contiguous()
    # What of each moment's response is seen at all.
    seen = (adjoint @ inside).clamp(min=_FLOOR)
    likelihood = inside / inside.sum(dim=0).clamp(min=1)
    for _ in range(num_iterations):
        expected = (response @ likelihood).clamp(min=_FLOOR)
        likelihood = likelihood * (adjoint @ (observed / expected)) / seen
    return (likelihood / likelihood.sum(dim=0).clamp(min=1)).T.contiguous()


def soft_hits(iou: Tensor, thresholds: Sequence[float] = (0.5, 0.7), width: float = 0.05) -> Tensor:
    """How much a moment of some IoU with the true one counts: the mean over Rank@m's thresholds.

    A step at each threshold, smoothed as a logistic, as the IoU itself is known to a cell only.

    Args:
        iou: IoU with the true moment, in [0, 1].
        thresholds: IoU above which a moment hits.
        width: IoU over which a step goes from 0.5 to 0.73.

    Shape:
        - iou: (...)
        - returns: (...), in [0, 1]

    Raises:
        ArgumentError: If `thresholds` is no list or empty, one is outside [0, 1], or `width` is not
            positive.
    """
    checked = _check_thresholds(thresholds)
    check_range("soft_hits", "width", width, 0, open_low=True)
    steps = [torch.sigmoid((iou - threshold) / width) for threshold in checked]
    return torch.stack(steps).mean(dim=0)


def _check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    who = "soft_hits"
    if not isinstance(thresholds, list | tuple):
        got = type(thresholds).__name__
        raise ArgumentError(f"{who}: expected thresholds to be a list or tuple, got {got}.")
    if not thresholds:
        raise ArgumentError(f"{who}: expected at least one threshold, got none.")
    return tuple(check_range(who, "threshold", threshold, 0, 1) for threshold in thresholds)


def rank_by_expected_hits(
    dense: Tensor,
    mask: Tensor,
    clip_seconds: Tensor | None = None,
    *,
    target: Callable[[Tensor], Tensor],
    durations: Tensor | None = None,
    top_n: int = 5,
    thresholds: Sequence[float] = (0.5, 0.7),
    num_iterations: int = 20,
) -> RankedMoments:
    """Read off merged maps the moments that together hit the true one most often.

    `rank_moments` takes the highest cells and forbids overlap: its second answer may overlap the
    first too little to help where the boundaries are unsure, or may not be where a second event is
    likely. Here the map is first turned into probabilities of moments (`deconvolve_map`). The first
    answer hits most often in expectation. Each further one hits most often where those before it
    fail, be that another event or another boundary.

    Scores are shares in [0, 1]: of the first moment its expected hits, of each further one what it
    adds. They never rise. A map without a positive cell is answered with its highest one.

    Tables of the last few sets of up to 2,048 candidates are kept on the CPU; of more that are
    whole numbers, as a grid's are, time and memory grow with the candidates, and not with their
    square. Scores have no gradient.

    Counting the candidates of a mask waits for its device; `rank_candidates_by_expected_hits` does
    not.

    Args:
        dense: Expected map, `[start clip, duration in clips - 1]`, as `MultiScaleMapSampler.merge`
            gives it; learned by squared error or cross-entropy (see `deconvolve_map`).
        mask: Which cells are candidates.
        clip_seconds: Seconds a clip lasts, for each sample. If None, moments are in clips.
        target: What the map is an expectation of, as an elementwise function of the IoU, for
            example `get_objective("mse-rescaled").target`.
        durations: Seconds each video lasts; moments end there at the latest.
        top_n: Moments a query.
        thresholds: What counts as a hit, see `soft_hits`.
        num_iterations: Of `deconvolve_map`.

    Shape:
        - dense: (B, N, N)
        - mask: (N, N) or (B, N, N), bool
        - clip_seconds, durations: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `mask` is not bool, `target` is no function, a threshold is outside
            [0, 1], or a number is below 1.

    Source: greedy maximum coverage, Nemhauser et al., doi 10.1007/BF01588971.
    """
    who = "rank_by_expected_hits"
    candidates, scores = check_candidates(who, dense, mask, clip_seconds, durations)
    return _rank(
        who, candidates, scores, clip_seconds, target, durations, top_n, thresholds, num_iterations
    )


def rank_candidates_by_expected_hits(
    candidates: Tensor,
    scores: Tensor,
    clip_seconds: Tensor | None = None,
    *,
    target: Callable[[Tensor], Tensor],
    durations: Tensor | None = None,
    top_n: int = 5,
    thresholds: Sequence[float] = (0.5, 0.7),
    num_iterations: int = 20,
) -> RankedMoments:
    """Do as `rank_by_expected_hits`, of maps that list their candidates: without a dense map.

    On other devices than the CPU it waits for the device once, if there are more than 2,048
    candidates, else never.

    Args:
        candidates: Start and end of each candidate, in clips; see
            `MultiScaleMapSampler.merge_packed`.
        scores: Score of each candidate; there is none where it is -inf or NaN.
        clip_seconds: Seconds a clip lasts, for each sample. If None, moments are in clips.
        target: As for `rank_by_expected_hits`.
        durations: Seconds each video lasts; moments end there at the latest.
        top_n: Moments a query.
        thresholds: What counts as a hit, see `soft_hits`.
        num_iterations: Of `deconvolve_map`.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M)
        - clip_seconds, durations: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `target` is no function, a threshold is outside [0, 1], or a number is
            below 1.
    """
    who = "rank_candidates_by_expected_hits"
    check_scored(who, candidates, scores, clip_seconds, durations)
    return _rank(
        who, candidates, scores, clip_seconds, target, durations, top_n, thresholds, num_iterations
    )


@torch.no_grad()
def _rank(
    who: str,
    candidates: Tensor,
    scores: Tensor,
    clip_seconds: Tensor | None,
    target: Callable[[Tensor], Tensor],
    durations: Tensor | None,
    top_n: int,
    thresholds: Sequence[float],
    num_iterations: int,
) -> RankedMoments:
    check_int(who, "top_n", top_n, at_least=1)
    check_int(who, "num_iterations", num_iterations, at_least=1)
    checked = _check_thresholds(thresholds)
    if not callable(target):
        hint = "Pass a function of the IoU, such as get_objective('mse-rescaled').target."
        raise ArgumentError(message(who, "target to be a function", repr(target), hint))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    picks = scores.new_full((len(scores), top_n), -1, dtype=torch.int64)
    gains = scores.new_full((len(scores), top_n), -torch.inf)
    if not len(candidates):
        return answer_moments(candidates, picks, gains, clip_seconds, durations)
    # In full precision also where the model's forward pass is not: the answers depend on it.
    with torch.autocast(scores.device.type, enabled=False):
        many = len(candidates) ** 2 > _LARGEST_KEPT
        blocks = CandidateBlocks.find(candidates) if many else None
        if blocks is None:
            tables = _tables(who, candidates, target, checked, scores.dtype)
        else:
            tables = _banded_tables(blocks, target, checked, scores.dtype)
        largest = _LARGEST_TABLE if tables.layers is None else _CACHED_ROWS
        rows = max(1, largest // len(candidates))
        for first in range(0, len(scores), rows):
            part = slice(first, first + rows)
            own = scores[part] if blocks is None else blocks.spread(scores[part])
            valid = own > -torch.inf  # nor NaN
            likelihood = _deconvolve(
                _with_a_positive_cell(own, valid),
                valid,
                tables.response,
                tables.response,  # an IoU is symmetric
                num_iterations,
            )
            found, gains[part] = _cover(likelihood, tables, valid, top_n)
            picks[part] = found if blocks is None else blocks.gather(found)
    return answer_moments(candidates, picks, gains, clip_seconds, durations)


def _with_a_positive_cell(scores: Tensor, valid: Tensor) -> Tensor:
    """Raise the highest cell of maps that have none above 0 to hardly more than that."""
    best, index = scores.where(valid, -torch.inf).max(dim=1, keepdim=True)
    return scores.scatter(1, index, best.clamp(min=_FLOOR))


# Tables of a set of candidates


@dataclass(frozen=True)
class _Layer:
    """Part of the hits: what of them lies above `low`, in units of `width`, 1 at most."""

    hits: Tensor | PairBand
    low: float
    width: float


@dataclass(frozen=True)
class _Tables:
    """What the answers need to know of pairs of candidates.

    Attributes:
        response: What each cell holds if the moment is that of another; sparse, if that is faster.
        hits: How much each candidate counts if the moment is that of another.
        layers: The hits as a sum, to bound gains; None where no result may be waited for.
    """

    response: Tensor | PairBand
    hits: Tensor | PairBand
    layers: tuple[_Layer, ...] | None


def _tables(
    who: str,
    candidates: Tensor,
    target: Callable[[Tensor], Tensor],
    thresholds: tuple[float, ...],
    dtype: torch.dtype,
) -> _Tables:
    candidates = candidates.double()
    if candidates.device.type != "cpu":
        iou = _pair_ious(candidates, dtype)
        return _Tables(target(iou), soft_hits(iou, thresholds), None)
    if len(candidates) ** 2 > _LARGEST_KEPT:
        iou = _pair_ious(candidates, dtype)
        return _host_tables(iou, target(iou), thresholds)
    # Kept by the values that determine them: a function may change what it does.
    cells = candidates.detach().numpy().tobytes()
    distinct = _distinct_ious(cells, dtype)
    values = target(distinct).to(dtype)
    check_shape(who, "target(iou)", values, f"{len(distinct)}")
    return _kept_tables(cells, dtype, thresholds, values.numpy().tobytes())


def _banded_tables(
    blocks: CandidateBlocks,
    target: Callable[[Tensor], Tensor],
    thresholds: tuple[float, ...],
    dtype: torch.dtype,
) -> _Tables:
    hits = blocks.table(lambda iou: soft_hits(iou, thresholds), dtype)
    if blocks.places.device.type != "cpu":
        return _Tables(blocks.table(target, dtype), hits, None)

    def layer(low: float, width: float) -> _Layer:
        return _Layer(
            blocks.table(lambda iou: _layer_of(soft_hits(iou, thresholds), low, width), dtype),
            low,
            width,
        )

    # From what all moments are covered by after the first pick: else the many that are far from it
    # would all be bounded by a little too much.
    layers = [layer(low + float(hits.far), width) for low, width in _layer_ends(thresholds)]
    return _Tables(blocks.table(target, dtype), hits, tuple(layers))


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
    cells: bytes, dtype: torch.dtype, thresholds: tuple[float, ...], values: bytes
) -> _Tables:
    iou = _pair_ious(_read(cells, torch.float64).view(-1, 2), dtype)
    index = torch.searchsorted(_distinct_ious(cells, dtype), iou)
    return _host_tables(iou, _read(values, dtype)[index], thresholds)


def _host_tables(iou: Tensor, response: Tensor, thresholds: tuple[float, ...]) -> _Tables:
    hits = soft_hits(iou, thresholds)
    layers = [
        _Layer(_sparse(_layer_of(hits, low, width)), low, width)
        for low, width in _layer_ends(thresholds)
    ]
    return _Tables(_sparse(response), hits, tuple(layers))


def _layer_ends(thresholds: tuple[float, ...]) -> list[tuple[float, float]]:
    """Lower end and width of each layer."""
    # Hits rise in as many steps as there are thresholds: layers end on the flats and between.
    width = 1 / (2 * len(thresholds))
    return [(width * index, width) for index in range(2 * len(thresholds))]


def _layer_of(hits: Tensor, low: float, width: float) -> Tensor:
    return ((hits - low) / width).clamp(0, 1)


def _sparse(matrix: Tensor) -> Tensor:
    """Make a matrix sparse, if it has zeros enough for its products to be faster."""
    few = int(matrix.count_nonzero()) <= _SPARSE * matrix.numel()
    return as_sparse(matrix) if few else matrix


# Greedy coverage


def _cover(likelihood: Tensor, tables: _Tables, valid: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """Pick candidates greedily by expected hits; -1 where none is left. (B, top_n) each."""
    # Gains only fall from pick to pick: an old one bounds the new one.
    bounds = (tables.hits @ likelihood.T).T.masked_fill(~valid, -torch.inf)
    covered = torch.zeros_like(likelihood)  # how well each moment is hit by the picks so far
    picks, gains = [], []
    for place in range(top_n):
        if place:
            bounds = _renew(bounds, likelihood, covered, tables)
        best, index = bounds.max(dim=1)
        picks.append(index.where(best > -torch.inf, -1))
        gains.append(best)
        covered = covered.maximum(_rows(tables.hits, index))
        bounds = bounds.scatter(1, index[:, None], -torch.inf)
    return torch.stack(picks, dim=1), torch.stack(gains, dim=1)


def _rows(hits: Tensor | PairBand, index: Tensor) -> Tensor:
    return hits.rows(index) if isinstance(hits, PairBand) else hits[index]


def _renew(bounds: Tensor, likelihood: Tensor, covered: Tensor, tables: _Tables) -> Tensor:
    """Lower bounds of gains until the highest of each row is the gain itself."""
    if tables.layers is None:
        return bounds.minimum(_all_gains(likelihood, covered, tables.hits))
    bounds = bounds.minimum(_bound_gains(likelihood, covered, tables.layers))
    _settle_highest(bounds, likelihood, covered, tables.hits)
    return bounds


def _all_gains(likelihood: Tensor, covered: Tensor, hits: Tensor | PairBand) -> Tensor:
    """Compute what each candidate would add to the picks so far."""
    if isinstance(hits, PairBand):
        return hits.all_gains(likelihood, covered)
    count = len(hits)
    columns = max(1, min(count, _LARGEST_TABLE // count))
    rows = max(1, _LARGEST_TABLE // (count * columns))
    return torch.cat(
        [
            torch.cat(
                [
                    torch.einsum("bm,bcm->bc", chances, (some - known[:, None]).clamp_(min=0))
                    for some in hits.split(columns)
                ],
                dim=1,
            )
            for chances, known in zip(likelihood.split(rows), covered.split(rows), strict=True)
        ]
    )


def _bound_gains(likelihood: Tensor, covered: Tensor, layers: tuple[_Layer, ...]) -> Tensor:
    """Bound what each candidate would add, from above.

    In a layer, max(hit - covered, 0) is convex in the hit, hence at most its chord
    hit * (1 - covered): a matrix product. Off by little, as few pairs meet inside a layer.
    """
    # A query a column, as a sparse matrix is multiplied from the left.
    chances, known = likelihood.T.contiguous(), covered.T.contiguous()
    bounds = torch.zeros_like(chances)
    for layer in layers:
        uncovered = (layer.low + layer.width - known).clamp_(0, layer.width)
        bounds += layer.hits @ uncovered.mul_(chances)
    return bounds.T


def _settle_highest(
    bounds: Tensor, likelihood: Tensor, covered: Tensor, hits: Tensor | PairBand
) -> None:
    """Replace the highest bounds of each row by the gains, until a gain is the highest."""
    fresh = torch.zeros_like(bounds, dtype=torch.bool)
    rows = torch.arange(len(bounds))
    while True:
        best, some = bounds[rows].topk(min(_REFRESHED, bounds.shape[1]), dim=1)
        open_ = ~fresh[rows, some[:, 0]] & (best[:, 0] > -torch.inf)
        rows, best, some = rows[open_], best[open_], some[open_]
        if not len(rows):
            return
        if isinstance(hits, PairBand):
            renewed = hits.gains(likelihood, covered, rows, some)
        else:
            added = (hits[some] - covered[rows, None]).clamp_(min=0)
            renewed = torch.einsum("bm,bcm->bc", likelihood[rows], added)
        # What is left out stays left out, and what was fresh already keeps its gain.
        bounds[rows[:, None], some] = renewed.minimum(best)
        fresh[rows[:, None], some] = True
