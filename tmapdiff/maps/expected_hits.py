"""From a map to the moments that are likeliest to hit: deconvolution, then greedy coverage.

The definitions come first: `deconvolve` and `cover`. `expected_hits_fast.py` covers quicker.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tmapdiff._core.checks import check_bool, check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.expected_hits_fast import (
    CandidateBlocks,
    Excludes,
    response_of,
    rows_at_once,
    tables_of,
)
from tmapdiff.maps.moments import RankedMoments, candidates_of, check_scored, to_ranked_moments

_FLOOR = 1e-6  # of predicted scores: a moment is never ruled out by a single cell
_LAYERS = 4  # two to each of the thresholds that `soft_hits` has by default


class Table(Protocol):
    """Numbers of all pairs of candidates, (M, M), however they are held."""

    def __matmul__(self, x: Tensor, /) -> Tensor:
        """Multiply with (M, B)."""


def deconvolve(
    scores: Tensor,
    valid: Tensor,
    response: Table,
    adjoint: Table,
    num_iterations: int,
    capped: bool = True,
) -> Tensor:
    """Find likelihoods, (B, M): what `deconvolve_map` does.

    `response` maps a column of likelihoods to the cells they make up; `adjoint` is its transpose.
    What is not `capped` may sum to more than 1: to how many moments are expected.
    """
    # A query a column, as a sparse matrix is multiplied from the left.
    inside = valid.T.to(scores.dtype, memory_format=torch.contiguous_format)
    observed = scores.masked_fill(~valid, 0).nan_to_num().clamp(min=0).T.contiguous()
    # What of each moment's response is seen at all.
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
    """Pick candidates greedily by expected hits, (B, top_n) and what each adds; -1 if none is left.

    `hits` holds how much a candidate, column, counts if the moment is that of another, row. `first`
    are the first picks, (B,), if they are given. `excludes` tells which candidates, (B, M), may not
    be picked after such picks, (B,).
    """
    covered = torch.zeros_like(likelihood)  # how well each moment is hit by the picks so far
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
    """Find how likely each moment is, from the map that is expected of such a moment.

    A map that was learned by squared error or cross-entropy is an expectation: each cell holds the
    mean, over the moments that the query may mean, of what the cell would hold if it meant that
    one. This finds those moments' probabilities by Richardson and Lucy's iteration, which starts
    from equal ones, keeps them positive, and sharpens them the more the longer it runs. Twenty
    iterations do for the rescaled IoU; the full IoU is broader and asks for hundreds.

    Args:
        scores: The map's cells; negative ones and NaN count as 0.
        response: What each cell holds, column, if the moment is that of a cell, row; not negative.
        valid: Which cells are candidates. Defaults to all.
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
        return deconvolve(scores.to(response), valid, response.T, response, num_iterations)


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
    who = "soft_hits"
    if not isinstance(thresholds, list | tuple):
        expected = "thresholds to be a list or tuple"
        raise ArgumentError(message(who, expected, type(thresholds).__name__))
    if not thresholds:
        raise ArgumentError(message(who, "at least one threshold", "none"))
    checked = [check_range(who, "threshold", threshold, 0, 1) for threshold in thresholds]
    check_range(who, "width", width, 0, open_low=True)
    steps = [torch.sigmoid((iou - threshold) / width) for threshold in checked]
    return torch.stack(steps).mean(dim=0)


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
    """Read off merged maps the moments that together hit the true one most often.

    `rank_moments` takes the highest cells and forbids overlap: its second answer may overlap the
    first too little to help where the boundaries are unsure, or may not be where a second event is
    likely. Here the map is first turned into probabilities of moments (`deconvolve_map`). The first
    answer hits most often in expectation. Each further one hits most often where those before it
    fail, be that another event or another boundary.

    With `highest_first`, the first answer is the highest cell, as of `rank_moments`, and each
    further one hits most often where those before it fail. It reads the first answer off the map
    itself, without the likelihoods, which are overconfident on data unlike that of training.

    Scores are shares in [0, 1]: of the first moment its expected hits, of each further one what it
    adds. They never rise: what adds more than a first moment that was the highest cell gets its
    score. A map without a positive cell is answered with its highest one.

    Tables of the last few sets of up to 2,048 candidates are kept on the CPU; of more that are
    whole numbers, as a grid's are, time and memory grow with the candidates, and not with their
    square. Scores have no gradient.

    Counting the candidates of a mask waits for its device; `rank_candidates_by_expected_hits` does
    not.

    Args:
        dense: Expected map, `[start clip, duration in clips - 1]`, as `MultiScaleMapSampler.merge`
            gives it; learned by squared error or cross-entropy (see `deconvolve_map`).
        mask: Which cells are candidates.
        clip_seconds: Seconds a clip lasts, for each sample. Moments are in clips without it.
        target: What the map is an expectation of, as an elementwise function of the IoU, for
            example `get_objective("mse-rescaled").target`.
        durations: Seconds each video lasts; moments end there at the latest.
        top_n: Moments per query.
        thresholds: What counts as a hit, see `soft_hits`.
        num_iterations: Of `deconvolve_map`.
        highest_first: Whether the highest cell is the first answer.
        temperature: Above 1, likelihoods are flatter, below 1 sharper: they are taken to the power
            of its inverse, and keep their sum. Flatter ones spread the answers out.

    Shape:
        - dense: (B, N, N)
        - mask: (N, N) or (B, N, N), bool
        - clip_seconds, durations: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `mask` is not bool, `target` is no function, a threshold is outside
            [0, 1], a number is below 1, or `temperature` is not positive.

    Source: greedy maximum coverage, Nemhauser et al., doi 10.1007/BF01588971.
    """
    who = "rank_by_expected_hits"
    candidates, scores = candidates_of(who, dense, mask)
    reading = target, durations, top_n, thresholds, num_iterations, highest_first, temperature
    return _rank(who, candidates, scores, clip_seconds, *reading)


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
    """Do as `rank_by_expected_hits`, of maps that list their candidates: without a dense map.

    Takes candidates and scores as `rank_candidates` does; `target`, `top_n`, `thresholds`,
    `num_iterations`, `highest_first` and `temperature` are as there. On other devices than the CPU
    it waits for the device once, if there are more than 2,048 candidates, else never.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M)
        - clip_seconds, durations: (B,)

    Raises:
        ShapeError, ArgumentError: As `rank_by_expected_hits`.
    """
    who = "rank_candidates_by_expected_hits"
    reading = target, durations, top_n, thresholds, num_iterations, highest_first, temperature
    return _rank(who, candidates, scores, clip_seconds, *reading)


@torch.no_grad()
def candidate_likelihoods(
    candidates: Tensor,
    scores: Tensor,
    *,
    target: Callable[[Tensor], Tensor],
    num_iterations: int = 20,
) -> Tensor:
    """Find how likely each candidate is the answer: `deconvolve_map` of maps that list them.

    It is what `rank_candidates_by_expected_hits` reads moments off. Takes candidates and scores as
    `rank_candidates` does; `target` and `num_iterations` are as for `rank_by_expected_hits`.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M)
        - returns: (B, M), sums to 1 at most; 0 where a candidate is missing

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `target` is no function, or `num_iterations` is below 1.
    """
    who = "candidate_likelihoods"
    check_scored(who, candidates, scores, None, None)
    check_deconvolution(who, target, num_iterations)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if not len(candidates):
        return scores
    found = torch.empty_like(scores)
    # In full precision also where the model's forward pass is not: the answers depend on it.
    with torch.autocast(scores.device.type, enabled=False):
        response, blocks = response_of(who, candidates, target, soft_hits, _LAYERS, scores.dtype)
        for part, likelihood, _ in likelihoods_of(response, blocks, scores, num_iterations):
            found[part] = likelihood if blocks is None else likelihood[:, blocks.places]
    return found


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
    highest_first: bool,
    temperature: float,
) -> RankedMoments:
    check_scored(who, candidates, scores, clip_seconds, durations)
    check_int(who, "top_n", top_n, at_least=1)
    soft_hits(scores.new_zeros(0), thresholds)  # checks them
    check_deconvolution(who, target, num_iterations)
    check_bool(who, "highest_first", highest_first)
    check_range(who, "temperature", temperature, 0, open_low=True)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    picks = scores.new_full((len(scores), top_n), -1, dtype=torch.int64)
    gains = scores.new_full((len(scores), top_n), -torch.inf)
    if not len(candidates):
        return to_ranked_moments(candidates, picks, gains, clip_seconds, durations)

    def hits(iou: Tensor) -> Tensor:
        return soft_hits(iou, thresholds)

    with torch.autocast(scores.device.type, enabled=False):
        tables = tables_of(who, candidates, target, hits, 2 * len(thresholds), scores.dtype)
        blocks, first = tables.blocks, None
        for part, likelihood, valid in likelihoods_of(
            tables.response, blocks, scores, num_iterations
        ):
            if temperature != 1:
                likelihood = _temper(likelihood, temperature)
            if highest_first:
                own = scores[part]
                first = own.masked_fill(own.isnan(), -torch.inf).argmax(dim=1)
                first = first if blocks is None else blocks.places[first]
            found, added = tables.cover(likelihood, valid, top_n, first)
            picks[part] = found if blocks is None else blocks.gather(found)
            # What greedy picks add never rises, but after a first one that was given.
            gains[part] = added if first is None else added.minimum(added[:, :1])
    return to_ranked_moments(candidates, picks, gains, clip_seconds, durations)


def check_deconvolution(who: str, target: object, num_iterations: int) -> None:
    """Raise ArgumentError unless these are what `rank_by_expected_hits` takes."""
    check_int(who, "num_iterations", num_iterations, at_least=1)
    _check_target(who, target)


def _check_target(who: str, target: object) -> None:
    if not callable(target):
        hint = "Pass a function of the IoU, such as get_objective('mse-rescaled').target."
        raise ArgumentError(message(who, "target to be a function", repr(target), hint))


def likelihoods_of(
    response: Table,
    blocks: CandidateBlocks | None,
    scores: Tensor,
    num_iterations: int,
    capped: bool = True,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Give, for some rows at a time, likelihoods and candidates, in the places of `blocks`."""
    rows = rows_at_once(scores)
    for first in range(0, len(scores), rows):
        part = slice(first, first + rows)
        own = scores[part] if blocks is None else blocks.spread(scores[part])
        valid = own > -torch.inf  # nor NaN
        own = _with_a_positive_cell(own, valid)
        # An IoU is symmetric, and so is the response.
        yield part, deconvolve(own, valid, response, response, num_iterations, capped), valid


def _temper(likelihood: Tensor, temperature: float) -> Tensor:
    """Take likelihoods to a power; each row keeps its sum."""
    tiny = torch.finfo(likelihood.dtype).tiny
    best = likelihood.amax(dim=1, keepdim=True).clamp(min=tiny)
    # Of shares of the highest: powers of small numbers would be 0.
    tempered = (likelihood / best) ** (1 / temperature)
    total = likelihood.sum(dim=1, keepdim=True)
    return tempered * (total / tempered.sum(dim=1, keepdim=True).clamp(min=tiny))


def _with_a_positive_cell(scores: Tensor, valid: Tensor) -> Tensor:
    """Raise the highest cell of maps that have none above 0 to hardly more than that."""
    best, index = scores.where(valid, -torch.inf).max(dim=1, keepdim=True)
    return scores.scatter(1, index, best.clamp(min=_FLOOR))


@torch.no_grad()
def expect_map(
    candidates: Tensor, likelihood: Tensor, target: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute the map that is expected where moments are known to be likely: cells hold a mean.

    It is what `deconvolve_map` undoes, and what all rankings read. The tables are those of
    `rank_by_expected_hits`.

    Args:
        candidates: Start and end of each candidate, in clips.
        likelihood: How likely the moment of each query is each candidate.
        target: What cells hold, as an elementwise function of their IoU with the moment.

    Shape:
        - candidates: (M, 2)
        - likelihood: (B, M)
        - returns: (B, M)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `target` is no function.
    """
    who = "expect_map"
    sizes = check_shape(who, "candidates", candidates, "M 2")
    check_shape(who, "likelihood", likelihood, "B M", sizes)
    _check_target(who, target)
    wide = likelihood.to(torch.promote_types(likelihood.dtype, torch.float32))
    with torch.autocast(wide.device.type, enabled=False):
        response, blocks = response_of(who, candidates, target, soft_hits, _LAYERS, wide.dtype)
        if blocks is None:
            return (response @ wide.T.contiguous()).T.contiguous()
        spread = blocks.spread(wide).clamp(min=0)
        return (response @ spread.T.contiguous()).T[:, blocks.places]
