"""From a map to the moments that are likeliest to hit: deconvolution, then greedy coverage."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

from tmapdiff._checks import check_int, check_range, check_shape
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.moments import RankedMoments, answer_moments, check_candidates
from tmapdiff.maps.overlap import temporal_iou

_FLOOR = 1e-6  # of predicted scores: a moment is never ruled out by a single cell
_LARGEST_TABLE = 2**24  # numbers in a table of queries x moments x candidates


def deconvolve_map(
    scores: Tensor, response: Tensor, valid: Tensor | None = None, *, num_iterations: int = 20
) -> Tensor:
    """Find how likely each moment is, from the map that is expected of such a moment.

    A map that was learned by squared error or cross-entropy is an expectation: each cell holds the
    mean, over the moments that the query may mean, of what the cell would hold if it meant that
    one. This finds those moments' probabilities by Richardson and Lucy's iteration, which starts
    from equal ones, keeps them positive, and sharpens them the more the longer it runs.

    Args:
        scores: The map's cells; negative ones count as 0, which they are but for rounding.
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
        ArgumentError: If `num_iterations` is below 1.

    Source: Richardson, doi 10.1364/JOSA.62.000055; Lucy, doi 10.1086/111605.
    """
    who = "deconvolve_map"
    sizes = check_shape(who, "scores", scores, "B M")
    check_shape(who, "response", response, "M M", sizes)
    if valid is None:
        valid = torch.ones_like(scores, dtype=torch.bool)
    check_shape(who, "valid", valid, "B M", sizes)
    check_int(who, "num_iterations", num_iterations, at_least=1)
    inside = valid.to(response)
    observed = scores.to(response).masked_fill(~valid, 0).clamp(min=0)
    # What of each moment's response is seen at all.
    seen = (inside @ response.T).clamp(min=_FLOOR)
    likelihood = inside / inside.sum(dim=1, keepdim=True).clamp(min=1)
    for _ in range(num_iterations):
        expected = (likelihood @ response).clamp(min=_FLOOR)
        likelihood = likelihood * ((observed / expected) @ response.T) / seen
    return likelihood / likelihood.sum(dim=1, keepdim=True).clamp(min=1)


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
        ArgumentError: If there is no threshold, one is outside [0, 1], or `width` is not positive.
    """
    who = "soft_hits"
    if not thresholds:
        raise ArgumentError(f"{who}: expected at least one threshold, got none.")
    for threshold in thresholds:
        check_range(who, "threshold", threshold, 0, 1)
    check_range(who, "width", width, 0, open_low=True)
    steps = [torch.sigmoid((iou - threshold) / width) for threshold in thresholds]
    return torch.stack(steps).mean(dim=0)


def rank_by_expected_hits(
    dense: Tensor,
    mask: Tensor,
    clip_seconds: Tensor,
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
    adds. They never rise.

    Args:
        dense: Expected map, `[start clip, duration in clips - 1]`, as `MultiScaleMapSampler.merge`
            gives it.
        mask: Which cells are candidates.
        clip_seconds: Seconds a clip lasts, for each sample.
        target: What the map is an expectation of, of the IoU: a `MapObjective`'s `target`.
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
        ArgumentError: If a threshold is outside [0, 1], or a number is below 1.

    Source: greedy maximum coverage, Nemhauser et al., doi 10.1007/BF01588971.
    """
    who = "rank_by_expected_hits"
    candidates, scores = check_candidates(who, dense, mask, clip_seconds, durations)
    check_int(who, "top_n", top_n, at_least=1)
    # Candidates outside a sample's mask hold -inf.
    valid = scores.isfinite()
    moments = candidates.to(torch.promote_types(scores.dtype, torch.float32))
    iou = temporal_iou(moments[:, None], moments)
    likelihood = deconvolve_map(scores, target(iou), valid, num_iterations=num_iterations)
    hits = soft_hits(iou, thresholds)
    picks, gains = _cover(likelihood, hits, valid, top_n)
    return answer_moments(candidates, picks, gains, clip_seconds, durations)


def _cover(likelihood: Tensor, hits: Tensor, valid: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """Pick candidates greedily by expected hits; -1 where none is left. (B, top_n) each."""
    count = len(hits)
    rows = max(1, _LARGEST_TABLE // max(count, 1) ** 2)
    picks = likelihood.new_full((len(likelihood), top_n), -1, dtype=torch.int64)
    gains = likelihood.new_full((len(likelihood), top_n), -torch.inf)
    if not count:
        return picks, gains
    for first in range(0, len(likelihood), rows):
        part = slice(first, first + rows)
        weights, left = likelihood[part], valid[part].clone()
        # How well each moment is hit by the answers so far.
        covered = torch.zeros_like(weights)
        for place in range(top_n):
            if place == 0:
                gain = weights @ hits
            else:
                added = (hits - rearrange(covered, "b m -> b m 1")).clamp_(min=0)
                gain = torch.einsum("bm,bmc->bc", weights, added)
            best, index = gain.masked_fill(~left, -torch.inf).max(dim=1)
            found = best > -torch.inf
            picks[part, place], gains[part, place] = index.where(found, -1), best
            covered = covered.maximum(hits[:, index].T)
            left = left.scatter(1, index[:, None], False)
    return picks, gains
