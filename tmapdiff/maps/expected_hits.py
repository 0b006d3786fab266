"""From a map to the moments that are likeliest to hit: deconvolution, then greedy coverage."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tmapdiff._checks import check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.moments import RankedMoments, answer_moments, check_candidates
from tmapdiff.maps.overlap import temporal_iou

_FLOOR = 1e-6  # of predicted scores: a moment is never ruled out by a single cell
_LARGEST_TABLE = 2**24  # numbers in a table of queries x moments x candidates
_REFRESHED = 64  # candidates whose gain is computed anew at once


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
        inside = valid.to(response)
        observed = scores.to(response).masked_fill(~valid, 0).nan_to_num().clamp(min=0)
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
        ArgumentError: If `thresholds` is no list or empty, one is outside [0, 1], or `width` is not
            positive.
    """
    who = "soft_hits"
    if not isinstance(thresholds, list | tuple):
        got = type(thresholds).__name__
        raise ArgumentError(f"{who}: expected thresholds to be a list or tuple, got {got}.")
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

    Memory grows with the square of the candidates: 0.2 GB for 2,500, 7 GB for 17,000.

    Args:
        dense: Expected map, `[start clip, duration in clips - 1]`, as `MultiScaleMapSampler.merge`
            gives it; learned by squared error or cross-entropy (see `deconvolve_map`).
        mask: Which cells are candidates.
        clip_seconds: Seconds a clip lasts, for each sample. If None, moments are in clips.
        target: What the map is an expectation of, as a function of the IoU, for example
            `get_objective("mse-rescaled").target`.
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
    check_int(who, "top_n", top_n, at_least=1)
    if not callable(target):
        hint = "Pass a function of the IoU, such as get_objective('mse-rescaled').target."
        raise ArgumentError(message(who, "target to be a function", repr(target), hint))
    valid = scores > -torch.inf  # nor NaN
    moments = candidates.to(torch.promote_types(scores.dtype, torch.float32))
    iou = temporal_iou(moments[:, None], moments)
    likelihood = deconvolve_map(
        _with_a_positive_cell(scores.to(iou), valid),
        target(iou),
        valid,
        num_iterations=num_iterations,
    )
    picks, gains = _cover(likelihood, soft_hits(iou, thresholds), valid, top_n)
    return answer_moments(candidates, picks, gains, clip_seconds, durations)


def _with_a_positive_cell(scores: Tensor, valid: Tensor) -> Tensor:
    """Raise the highest cell of maps that have none above 0 to hardly more than that."""
    if not scores.shape[1]:
        return scores
    best, index = scores.where(valid, -torch.inf).max(dim=1, keepdim=True)
    return scores.scatter(1, index, best.clamp(min=_FLOOR).to(scores))


def _cover(likelihood: Tensor, hits: Tensor, valid: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """Pick candidates greedily by expected hits; -1 where none is left. (B, top_n) each."""
    count = len(hits)
    shape = (len(likelihood), top_n)
    picks = likelihood.new_full(shape, -1, dtype=torch.int64)
    gains = likelihood.new_full(shape, -torch.inf)
    rows = max(1, _LARGEST_TABLE // max(count * min(count, _REFRESHED), 1))
    with torch.autocast(likelihood.device.type, enabled=False):
        for first in range(0, len(likelihood) if count else 0, rows):
            part = slice(first, first + rows)
            picks[part], gains[part] = _cover_part(likelihood[part], hits, valid[part], top_n)
    return picks, gains


def _cover_part(
    likelihood: Tensor, hits: Tensor, valid: Tensor, top_n: int
) -> tuple[Tensor, Tensor]:
    # Gains only fall from pick to pick: an old gain bounds the new one, and most are never needed.
    bounds = (likelihood @ hits).masked_fill(~valid, -torch.inf)
    covered = torch.zeros_like(likelihood)  # how well each moment is hit by the picks so far
    picks, gains = [], []
    for place in range(top_n):
        fresh = torch.full_like(valid, place == 0)
        best, index = bounds.max(dim=1)
        while not bool((fresh.gather(1, index[:, None])[:, 0] | (best == -torch.inf)).all()):
            stale = bounds.masked_fill(fresh, -torch.inf)
            some = stale.topk(min(_REFRESHED, len(hits)), dim=1).indices
            added = (hits.T[some] - covered[:, None]).clamp_(min=0)
            renewed = torch.einsum("bm,bcm->bc", likelihood, added)
            # What is left out stays left out, and what was fresh already keeps its gain.
            bounds = bounds.scatter(1, some, renewed.minimum(bounds.gather(1, some)))
            fresh = fresh.scatter(1, some, True)
            best, index = bounds.max(dim=1)
        found = best > -torch.inf
        picks.append(index.where(found, -1))
        gains.append(best)
        covered = covered.maximum(hits[:, index].T)
        bounds = bounds.scatter(1, index[:, None], -torch.inf)
    return torch.stack(picks, dim=1), torch.stack(gains, dim=1)
