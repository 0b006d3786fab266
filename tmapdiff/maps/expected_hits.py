"""From a map to the moments most likely to hit: deconvolution, then greedy coverage.

`deconvolve` and `cover` are the definitions; `expected_hits_fast.py` has a faster `cover`.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tmapdiff._core.checks import check_bool, check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.expected_hits_fast import Excludes, PairBand, Tables, rows_at_once, tables_of
from tmapdiff.maps.moments import (
    RankedMoments,
    at_least_one,
    candidates_of,
    check_scored,
    to_ranked_moments,
)
from tmapdiff.maps.overlap import soft_hits

_FLOOR = 1e-6  # least expected score, so that no single cell rules a moment out
Table = Tensor | PairBand  # a matrix over pairs of candidates, (M, M)


def deconvolve(
    scores: Tensor,
    valid: Tensor,
    response: Table,
    adjoint: Table,
    num_iterations: int,
    capped: bool = True,
) -> Tensor:
    """Compute likelihoods, (B, M), for `deconvolve_map`.

    `response` maps a column of likelihoods to expected cells; `adjoint` is its transpose. Unless
    `capped`, likelihoods may sum to more than 1: to the expected number of moments.
    """
    # One column per query, as sparse matrices multiply from the left.
    inside = valid.T.to(scores.dtype, memory_format=torch.contiguous_format)
    observed = scores.masked_fill(~valid, 0).nan_to_num().clamp(min=0).T.contiguous()
    # The share of each moment's response that lies in valid cells.
    seen = (adjoint @ inside).clamp(min=_FLOOR)
    likelihood = inside / inside.sum(dim=0).clamp(min=1)
    for _ in range(num_iterations):
        expected = (response @ likelihood).clamp(min=_FLOOR)
        likelihood = likelihood * (adjoint @ (observed / expected)) / seen
    if capped:
        likelihood = likelihood / likelihood.sum(dim=0).clamp(min=1)
    return likelihood.T.contiguous()


def cover(
    likelihood: Tensor,
    hits: Tensor,
    valid: Tensor,
    top_n: int,
    first: Tensor | None = None,
    excludes: Excludes | None = None,
) -> tuple[Tensor, Tensor]:
    """Pick candidates greedily by expected hits; return picks and their gains, (B, top_n) each.

    Picks are -1 where no candidate is left. `hits` holds how much a candidate (column) counts if
    another (row) is the true moment. `first` optionally fixes the first picks, (B,). `excludes`
    maps picks, (B,), to the candidates that they rule out, (B, M).
    """
    covered = torch.zeros_like(likelihood)  # how well the picks so far hit each moment
    picks, gains = [], []
    for place in range(top_n):
        added = (hits[None] - covered[:, :, None]).clamp(min=0)
        expected = torch.einsum("bm,bmc->bc", likelihood, added).masked_fill(~valid, -torch.inf)
        best, index = expected.max(dim=1)
        if first is not None and not place:
            best, index = expected.gather(1, first[:, None])[:, 0], first
        picks.append(index.where(best > -torch.inf, -1))
        gains.append(best)
        covered = covered.maximum(hits.T[index])
        valid = valid.scatter(1, index[:, None], False)
        if excludes is not None:
            valid = valid & ~excludes(index)
    return torch.stack(picks, dim=1), torch.stack(gains, dim=1)


def deconvolve_map(
    scores: Tensor, response: Tensor, valid: Tensor | None = None, *, num_iterations: int = 20
) -> Tensor:
    """Compute how likely each moment is from a map, which is an expectation over moments.

    A map learned by squared error or cross-entropy holds, in each cell, the mean of the cell's
    target over the moments that the query may refer to. This recovers the probabilities of those
    moments by Richardson-Lucy iteration, which starts from equal probabilities, keeps them
    positive, and sharpens them with every step. Twenty iterations suffice for the rescaled IoU; the
    broader full IoU needs hundreds.

    Args:
        scores: The map's cells. Negative values and NaN count as 0.
        response: Target of each cell (column) if another (row) is the true moment; not negative.
        valid: Which cells are candidates. Defaults to all.
        num_iterations: Iterations.

    Shape:
        - scores: (B, M)
        - response: (M, M)
        - valid: (B, M), bool
        - returns: (B, M), sums to at most 1; 0 where not valid

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
    # Answers need full precision, even if the model's forward pass does not.
    with torch.autocast(scores.device.type, enabled=False):
        return deconvolve(scores.to(response), valid, response.T, response, num_iterations)


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
    highest_first: bool = False,
    temperature: float = 1.0,
) -> RankedMoments:
    """Return the moments of merged maps that together are most likely to hit the true one.

    `rank_moments` takes the highest cells and forbids overlap, so its second answer may not cover
    uncertain boundaries or a likely second event. Here the map is first turned into probabilities
    of moments (`deconvolve_map`). The first answer has the most expected hits; each further one
    adds the most hits where the previous ones miss: on another event, or with another boundary.

    With `highest_first`, the first answer is the highest cell, as in `rank_moments`. It does not
    depend on the likelihoods, which are overconfident on data unlike the training data.

    Scores lie in [0, 1] and never rise: the expected hits of the first moment, then the hits that
    each further one adds, at most the first score. For a map without a positive cell, returns
    its highest cell.

    Tables for the last few sets of up to 2,048 candidates are cached on the CPU. For larger sets of
    whole clips, as a grid's are, time and memory are linear in the candidates. Scores have no
    gradient. Synchronizes with the device to count candidates, unlike
    `rank_candidates_by_expected_hits`.

    Args:
        dense: Expected map, `[start clip, duration in clips - 1]`, as `MultiScaleMapSampler.merge`
            returns it; learned by squared error or cross-entropy (see `deconvolve_map`).
        mask: Which cells are candidates.
        clip_seconds: Seconds per clip, for each sample. Without it, moments are in clips.
        target: The quantity that the map is an expectation of, as an elementwise function of the
            IoU, for example `get_objective("mse-rescaled").target`.
        durations: Seconds each video lasts. Moments are cut there.
        top_n: Moments per query.
        thresholds: IoU thresholds of a hit, see `soft_hits`.
        num_iterations: Iterations of `deconvolve_map`.
        highest_first: Whether the highest cell is the first answer.
        temperature: Likelihoods are raised to the power `1 / temperature` and keep their sum; above
            1 they become flatter, which spreads the answers out.

    Shape:
        - dense: (B, N, N)
        - mask: (N, N) or (B, N, N), bool
        - clip_seconds, durations: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `mask` is not bool, `target` is not a function, a threshold is outside
            [0, 1], a number is below 1, or `temperature` is not positive.

    Source: greedy maximum coverage, Nemhauser et al., doi 10.1007/BF01588971.
    """
    return rank_candidates_by_expected_hits(
        *candidates_of("rank_by_expected_hits", dense, mask),
        clip_seconds,
        target=target,
        durations=durations,
        top_n=top_n,
        thresholds=thresholds,
        num_iterations=num_iterations,
        highest_first=highest_first,
        temperature=temperature,
    )


@torch.no_grad()
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
    highest_first: bool = False,
    temperature: float = 1.0,
) -> RankedMoments:
    """Rank a list of candidates: `rank_by_expected_hits` without a dense map.

    Takes candidates and scores as `rank_candidates` does; `target`, `top_n`, `thresholds`,
    `num_iterations`, `highest_first`, `temperature` and errors are as for `rank_by_expected_hits`.
    Synchronizes with a GPU once if there are more than 2,048 candidates, otherwise never.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M)
        - clip_seconds, durations: (B,)
    """
    who = "rank_candidates_by_expected_hits"
    check_scored(who, candidates, scores, clip_seconds, durations)
    check_int(who, "top_n", top_n, at_least=1)
    soft_hits(scores.new_zeros(0), thresholds)  # checks the thresholds
    check_int(who, "num_iterations", num_iterations, at_least=1)
    check_bool(who, "highest_first", highest_first)
    check_range(who, "temperature", temperature, 0, open_low=True)
    candidates, scores = at_least_one(candidates, scores)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    gains = scores.new_empty(len(scores), top_n)
    picks = torch.empty_like(gains, dtype=torch.int64)
    with torch.autocast(scores.device.type, enabled=False):
        tables = tables_of(who, candidates, target, scores.dtype, thresholds)
        for part, likelihood, valid in likelihoods_of(tables, scores, num_iterations):
            if temperature != 1:
                likelihood = _temper(likelihood, temperature)
            first = None
            if highest_first:
                first = scores[part].masked_fill(scores[part].isnan(), -torch.inf).argmax(dim=1)
            picks[part], added = tables.cover(likelihood, valid, top_n, first)
            # Greedy gains never rise, except after a fixed first pick.
            gains[part] = added.minimum(added[:, :1])
    return to_ranked_moments(candidates, picks, gains, clip_seconds, durations)


@torch.no_grad()
def candidate_likelihoods(
    candidates: Tensor,
    scores: Tensor,
    *,
    target: Callable[[Tensor], Tensor],
    num_iterations: int = 20,
) -> Tensor:
    """Compute how likely each candidate is the answer: `deconvolve_map` for listed candidates.

    Takes candidates and scores as `rank_candidates` does; `target` and `num_iterations` are as for
    `rank_by_expected_hits`.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M)
        - returns: (B, M), sums to at most 1; 0 where a candidate is missing

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `target` is not a function, or `num_iterations` is below 1.
    """
    who = "candidate_likelihoods"
    check_scored(who, candidates, scores, None, None)
    check_int(who, "num_iterations", num_iterations, at_least=1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if not len(candidates):
        return scores
    found = torch.empty_like(scores)
    # Answers need full precision, even if the model's forward pass does not.
    with torch.autocast(scores.device.type, enabled=False):
        tables = tables_of(who, candidates, target, scores.dtype)
        for part, likelihood, _ in likelihoods_of(tables, scores, num_iterations):
            found[part] = tables.gather(likelihood)
    return found


def likelihoods_of(
    tables: Tables, scores: Tensor, num_iterations: int, capped: bool = True
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield likelihoods and valid candidates for a few rows at a time, in the tables' order."""
    response = tables.response  # IoU is symmetric, and so is this
    rows = rows_at_once(scores)
    for first in range(0, len(scores), rows):
        part = slice(first, first + rows)
        own = tables.spread(scores[part])
        valid = own > -torch.inf  # nor NaN
        own = _with_a_positive_cell(own, valid)
        yield part, deconvolve(own, valid, response, response, num_iterations, capped), valid


def _temper(likelihood: Tensor, temperature: float) -> Tensor:
    """Raise likelihoods to a power; each row keeps its sum."""
    tiny = torch.finfo(likelihood.dtype).tiny
    best = likelihood.amax(dim=1, keepdim=True).clamp(min=tiny)
    # Relative to the highest, as powers of small numbers underflow.
    tempered = (likelihood / best) ** (1 / temperature)
    total = likelihood.sum(dim=1, keepdim=True)
    return tempered * (total / tempered.sum(dim=1, keepdim=True).clamp(min=tiny))


def _with_a_positive_cell(scores: Tensor, valid: Tensor) -> Tensor:
    """Raise the highest cell of maps without a positive one to just above 0."""
    best, index = scores.where(valid, -torch.inf).max(dim=1, keepdim=True)
    return scores.scatter(1, index, best.clamp(min=_FLOOR))


@torch.no_grad()
def expect_map(
    candidates: Tensor, likelihood: Tensor, target: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute the expected map of moments with given likelihoods: the inverse of `deconvolve_map`.

    Args:
        candidates: Start and end of each candidate, in clips.
        likelihood: How likely each candidate is the true moment of each query.
        target: Value of a cell, as an elementwise function of its IoU with the true moment.

    Shape:
        - candidates: (M, 2)
        - likelihood: (B, M)
        - returns: (B, M)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `target` is not a function.
    """
    who = "expect_map"
    sizes = check_shape(who, "candidates", candidates, "M 2")
    check_shape(who, "likelihood", likelihood, "B M", sizes)
    wide = likelihood.to(torch.promote_types(likelihood.dtype, torch.float32))
    with torch.autocast(wide.device.type, enabled=False):
        tables = tables_of(who, candidates, target, wide.dtype)
        spread = tables.spread(wide).clamp(min=0)
        return tables.gather((tables.response @ spread.T.contiguous()).T).contiguous()
