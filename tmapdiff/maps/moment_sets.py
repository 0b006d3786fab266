"""From maps to sets of moments, of any number including none.

A set is chosen by its expected F1, 2 * hits / (predicted + true moments), which is 1 if both are
none. `expected_set_f1` and `expected_pair_f1` are the definitions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tmapdiff._core.checks import check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.expected_hits import likelihoods_of
from tmapdiff.maps.expected_hits_fast import Elementwise, Excludes, Tables, tables_of
from tmapdiff.maps.moments import RankedMoments, at_least_one, check_scored, to_ranked_moments
from tmapdiff.maps.overlap import soft_hits, temporal_iou

_Sets = tuple[Tensor, Tensor, Tensor]  # picks (B, n), padded with -1; hits (B, n); present (B,)


def expected_set_f1(hits: Tensor, expected_count: Tensor) -> Tensor:
    """Compute the expected F1 of the first 1, 2, ..., n picks, given that there is a moment.

    This is the quotient of expectations, 2 * hits / (picks + moments): a first-order approximation,
    exact if the number of moments is known.

    Shape:
        - hits: (B, n), expected hits that each pick adds to those before it
        - expected_count: (B,), expected number of moments
        - returns: (B, n)
    """
    picks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return 2 * hits.cumsum(dim=1) / (picks + expected_count[:, None])


def expected_pair_f1(
    moments: Tensor, counted: Tensor, hits: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute the F1 of each set against each other as the truth, and the hits of each moment.

    A moment hits and is hit at most once. This overcounts one-to-one matches only where several
    moments of both sets hit each other crosswise.

    Shape:
        - moments: (S, n, 2)
        - counted: (S, n), bool, which moments belong to the set
        - returns: F1, (S, S); and hits of each moment of a set in each other set, (S, n, S)
    """
    flat, inside = moments.flatten(0, 1), counted.flatten()
    table = hits(temporal_iou(flat[:, None], flat)) * (inside[:, None] & inside)
    table = table.unflatten(1, counted.shape).unflatten(0, counted.shape)  # (S, n, S, n)
    given, found = table.amax(dim=3), table.amax(dim=1)
    matched = given.sum(dim=1).minimum(found.sum(dim=2))
    sizes = counted.sum(dim=1)
    return 2 * matched / (sizes[:, None] + sizes).clamp(min=1), given


@torch.no_grad()
def read_moment_sets(
    candidates: Tensor,
    scores: Tensor,
    clip_seconds: Tensor | None = None,
    *,
    target: Callable[[Tensor], Tensor],
    durations: Tensor | None = None,
    presence: Tensor | None = None,
    top_n: int = 5,
    thresholds: Sequence[float] = (0.5, 0.7),
    num_iterations: int = 20,
    nms_threshold: float = 1.0,
) -> RankedMoments:
    """Return the set of moments of each query, as many as its map, or its samples, suggest.

    A map is first turned into the expected number of moments at each candidate; unlike in
    `deconvolve_map`, these may sum to more than 1. That is exact for the rescaled IoU of separate
    moments, and nearly so for the full IoU. Candidates are then picked as in
    `rank_by_expected_hits`, and the first picks with the highest expected F1 form the set, or none
    if the empty set's is as high.

    With several samples, a set is read from each. The answer is the one with the highest mean F1
    against all (minimum Bayes risk), which keeps the moments that occur together; a mean of maps
    would lose that.

    A score is the probability that the moment hits, averaged over the thresholds; for a single map,
    that it hits where those before it miss. Two overlapping moments may be returned where
    boundaries are uncertain; `nms_threshold` prevents that.

    Args:
        candidates: Start and end of each candidate, in clips.
        scores: The map, as for `rank_candidates_by_expected_hits`, or sampled maps.
        clip_seconds: Seconds per clip, for each sample. Without it, moments are in clips.
        target: The quantity that the map is an expectation of, as a function of the IoU.
        durations: Seconds each video lasts. Moments are cut there.
        presence: Likelihood that each query has a moment at all. Defaults to the expected number
            of moments, at most 1; for samples, to the share of nonempty sets.
        top_n: Largest number of moments in a set.
        thresholds: IoU thresholds of a hit, see `soft_hits`; F1 is averaged over them.
        num_iterations: Iterations of `deconvolve_map`.
        nms_threshold: Highest IoU of two moments in a set; 0 forbids overlap.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M), or (B, S, M) for samples
        - clip_seconds, durations, presence: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If there is no sample, `target` is not a function, a threshold or a presence
            is outside [0, 1], or a number is below 1.

    Source: for samples, Kumar and Byrne, "Minimum Bayes-Risk Decoding for Statistical Machine
    Translation", NAACL 2004.
    """
    who = "read_moment_sets"
    samples = scores[:, None] if isinstance(scores, Tensor) and scores.dim() == 2 else scores
    count = check_shape(who, "scores", samples, "B S M")["S"]
    check_int(who, "the number of samples", count, at_least=1)
    check_scored(who, candidates, samples[:, 0], clip_seconds, durations)
    check_int(who, "top_n", top_n, at_least=1)
    hits = partial(soft_hits, thresholds=thresholds)
    hits(samples.new_zeros(0))  # checks the thresholds
    check_int(who, "num_iterations", num_iterations, at_least=1)
    check_range(who, "nms_threshold", nms_threshold, 0, 1)
    if presence is not None:
        check_shape(who, "presence", presence, f"{len(samples)}")
        if not bool(((presence >= 0) & (presence <= 1)).all()):
            raise ArgumentError(message(who, "presence in [0, 1]", presence.tolist()))

    candidates, samples = at_least_one(candidates, samples)
    flat = samples.flatten(0, 1).to(torch.promote_types(samples.dtype, torch.float32))
    with torch.autocast(flat.device.type, enabled=False):
        tables = tables_of(who, candidates, target, flat.dtype, thresholds)
        placed = tables.spread(candidates.to(flat).T).T.nan_to_num(neginf=0)

        def excludes(index: Tensor) -> Tensor:
            return temporal_iou(placed, placed[index][:, None]) > nms_threshold

        limit = None if nms_threshold == 1 else excludes
        given = presence if count == 1 else None
        found = _read(tables, flat, given, top_n, num_iterations, limit)
        if count > 1:
            found = _choose(candidates, found, count, presence, hits)
    picks, probability, present = found
    probability = probability.masked_fill(picks < 0, -torch.inf)
    ranked = to_ranked_moments(candidates, picks, probability, clip_seconds, durations)
    return replace(ranked, presence=present)


def _read(
    tables: Tables,
    scores: Tensor,
    presence: Tensor | None,
    top_n: int,
    num_iterations: int,
    excludes: Excludes | None,
) -> _Sets:
    """Read a set off each map."""
    picks = scores.new_full((len(scores), top_n), -1, dtype=torch.int64)
    probability, present = scores.new_zeros(picks.shape), scores.new_zeros(len(scores))
    if presence is not None:
        present = presence.to(scores)
    for part, intensity, valid in likelihoods_of(tables, scores, num_iterations, capped=False):
        total = intensity.sum(dim=1)
        if presence is None:
            present[part] = total.clamp(max=1)
        # Given that there is a moment, at least one is expected.
        count = total.clamp(min=1)
        intensity *= (count / total.clamp(min=torch.finfo(total.dtype).tiny))[:, None]
        found, added = tables.cover(intensity, valid, top_n, excludes=excludes)
        # A pick hits at most once, however many moments are expected near it.
        added = added.clamp(0, 1)
        f1 = expected_set_f1(added, count).masked_fill(found < 0, -torch.inf)
        best, last = f1.max(dim=1)
        none = _is_none_best(present[part], best)
        places = torch.arange(top_n, device=scores.device)
        picks[part] = found.where((places <= last[:, None]) & ~none[:, None], -1)
        probability[part] = added * present[part][:, None]
    return picks, probability, present


def _choose(
    candidates: Tensor, each: _Sets, count: int, presence: Tensor | None, hits: Elementwise
) -> _Sets:
    """Choose the set of one of `count` samples for each query."""
    picks = each[0].unflatten(0, (-1, count))
    counted = picks >= 0
    present = counted[..., 0].to(each[2]).mean(dim=1) if presence is None else presence.to(each[2])
    chosen = picks.new_full((len(picks), picks.shape[2]), -1)
    probability = each[1].new_zeros(chosen.shape)
    moments = candidates.to(probability)[picks.clamp(min=0)]
    for row, inside in enumerate(counted):
        f1, given = expected_pair_f1(moments[row], inside, hits)
        full = inside[:, 0].sum().clamp(min=1)
        mean = f1.sum(dim=1) / full  # empty sets add 0
        best = mean.argmax()
        shares = given[best].sum(dim=1) / full * present[row]
        probability[row], order = shares.sort(descending=True, stable=True)
        none = _is_none_best(present[row], mean[best])
        chosen[row] = picks[row, best][order].where(~none, -1)
    return chosen, probability, present


def _is_none_best(present: Tensor, f1: Tensor) -> Tensor:
    """Whether the empty set is best, given the `f1` of the best other set if there is a moment."""
    return 1 - present >= present * f1
