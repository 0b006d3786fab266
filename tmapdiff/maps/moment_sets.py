"""From maps to sets of moments: as many as there seem to be, or none.

A set is chosen by its expected F1, 2 * hits / (moments given + moments there), which is 1 where
none is given and none is there. `expected_set_f1` and `expected_pair_f1` are the definitions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tmapdiff._core.checks import check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.expected_hits import check_deconvolution, likelihoods_of, soft_hits
from tmapdiff.maps.expected_hits_fast import tables_of
from tmapdiff.maps.moments import RankedMoments, check_scored, to_ranked_moments
from tmapdiff.maps.overlap import temporal_iou


class _Sets(NamedTuple):
    picks: Tensor  # (B, n), candidates; -1 after the last of the set
    hits: Tensor  # (B, n), how likely each pick hits what those before it do not
    present: Tensor  # (B,)


class _Reading(NamedTuple):
    """How one map is read as a set."""

    target: Callable[[Tensor], Tensor]
    top_n: int
    thresholds: Sequence[float]
    num_iterations: int
    nms_threshold: float

    def hits(self, iou: Tensor) -> Tensor:
        return soft_hits(iou, self.thresholds)


def expected_set_f1(hits: Tensor, expected_count: Tensor) -> Tensor:
    """Compute the expected F1 of the first 1, 2, ..., n picks, if there is a moment at all.

    To first order: the quotient of the expectations, 2 * hits / (picks + moments). It is exact
    where it is known how many moments there are, though not which ones.

    Shape:
        - hits: (B, n), how many moments each pick is expected to hit that those before it do not
        - expected_count: (B,), moments that are expected
        - returns: (B, n)
    """
    picks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return 2 * hits.cumsum(dim=1) / (picks + expected_count[:, None])


def expected_pair_f1(
    moments: Tensor, counted: Tensor, hits: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute the F1 of each set, (S, S), with each as the truth; and what each moment hits.

    A moment hits once at most and is hit once at most. Only where moments of both sets hit several
    crosswise can fewer be matched one to one than are counted here.

    Shape:
        - moments: (S, n, 2)
        - counted: (S, n), bool, those that are of the set
        - returns: (S, S), and (S, n, S): how much each moment of a set hits of another set
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
    """Read the moments of each query off an expected map, as many as there seem to be: a set.

    The map is taken apart into how many moments are expected to be each candidate, without a limit
    on their sum (`deconvolve_map` caps it at 1). Cells of the rescaled IoU with several moments
    apart are the sum of those with each, so that holds for them; of the full IoU nearly. Candidates
    are then picked as `rank_by_expected_hits` does, which gathers neighbours into a pick, and the
    first picks of highest expected F1 are the set. The empty set is it where none is likelier.

    A score is the probability that the moment hits: in the mean over the thresholds, and one that
    those before it do not hit. Bounds that are unsure may be answered by two that overlap, where
    that pays; `nms_threshold` forbids it.

    Args:
        candidates: Start and end of each candidate, in clips.
        scores: The map, as for `rank_candidates_by_expected_hits`.
        clip_seconds: Seconds a clip lasts, for each sample. Moments are in clips without it.
        target: What the map is an expectation of, as a function of the IoU.
        durations: Seconds each video lasts; moments end there at the latest.
        presence: How likely each query has a moment at all. By default as many as the map says: 1
            if at least one is expected.
        top_n: Moments of a set, at most.
        thresholds: What counts as a hit, see `soft_hits`; F1 is the mean over them.
        num_iterations: Of `deconvolve_map`.
        nms_threshold: Highest IoU that two moments of a set may have; 0 for none that overlap.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M)
        - clip_seconds, durations, presence: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `target` is no function, a threshold or a presence is outside [0, 1], or a
            number below 1.
    """
    who = "read_moment_sets"
    reading = _Reading(target, top_n, thresholds, num_iterations, nms_threshold)
    _check(who, candidates, scores, clip_seconds, durations, presence, reading)
    found = _read(who, candidates, scores, presence, reading)
    return _ranked(candidates, found, clip_seconds, durations)


@torch.no_grad()
def choose_moment_sets(
    candidates: Tensor,
    samples: Tensor,
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
    """Read the moments of each query off sampled maps: the set that agrees best with all samples.

    Each sample is read as a set by `read_moment_sets`, and taken for what may be true: the answer
    is the set with the highest mean F1 against all of them (minimum Bayes risk). It keeps what a
    mean of maps loses: which moments come together. A score is the share of samples whose set the
    moment hits. By default, `presence` is the share of those whose set is not empty. `target`,
    `top_n`, `thresholds`, `num_iterations` and `nms_threshold` are as for `read_moment_sets`.

    Shape:
        - candidates: (M, 2)
        - samples: (B, S, M)
        - clip_seconds, durations, presence: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: As `read_moment_sets`; if there is no sample.

    Source: Kumar and Byrne, "Minimum Bayes-Risk Decoding for Statistical Machine Translation",
    NAACL 2004.
    """
    who = "choose_moment_sets"
    reading = _Reading(target, top_n, thresholds, num_iterations, nms_threshold)
    count = check_shape(who, "samples", samples, "B S M")["S"]
    check_int(who, "the number of samples", count, at_least=1)
    _check(who, candidates, samples[:, 0], clip_seconds, durations, presence, reading)
    each = _read(who, candidates, samples.flatten(0, 1), None, reading)
    picks = each.picks.unflatten(0, samples.shape[:2])
    counted = picks >= 0
    hits, present = each.hits.new_zeros(picks.shape[::2]), presence
    if present is None:
        present = counted[..., 0].to(hits).mean(dim=1)
    best_picks = torch.full_like(picks[:, 0], -1)
    if len(candidates):
        moments = candidates.to(hits)[picks.clamp(min=0)]
        for row, inside in enumerate(counted):
            f1, given = expected_pair_f1(moments[row], inside, reading.hits)
            full = inside[:, 0].sum().clamp(min=1)
            mean = f1.sum(dim=1) / full  # empty ones add 0
            best = mean.argmax()
            chosen = given[best].sum(dim=1) / full * present[row]
            hits[row], order = chosen.sort(descending=True, stable=True)
            none = _is_empty(present[row], mean[best])
            best_picks[row] = picks[row, best][order].where(~none, -1)
    return _ranked(candidates, _Sets(best_picks, hits, present), clip_seconds, durations)


def _read(
    who: str, candidates: Tensor, scores: Tensor, presence: Tensor | None, reading: _Reading
) -> _Sets:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    shape = (len(scores), reading.top_n)
    picks, hits = scores.new_full(shape, -1, dtype=torch.int64), scores.new_zeros(shape)
    present = scores.new_zeros(len(scores)) if presence is None else presence.to(scores)
    if not len(candidates):
        return _Sets(picks, hits, present)
    with torch.autocast(scores.device.type, enabled=False):
        layers = 2 * len(reading.thresholds)
        tables = tables_of(who, candidates, reading.target, reading.hits, layers, scores.dtype)
        blocks, placed = tables.blocks, candidates.to(scores.dtype)
        if blocks is not None:
            placed = blocks.spread(placed.T).T.nan_to_num(neginf=0)

        def excludes(index: Tensor) -> Tensor:
            return temporal_iou(placed, placed[index][:, None]) > reading.nms_threshold

        unlimited = reading.nms_threshold == 1
        for part, intensity, valid in likelihoods_of(
            tables.response, blocks, scores, reading.num_iterations, capped=False
        ):
            total = intensity.sum(dim=1)
            if presence is None:
                present[part] = total.clamp(max=1)
            # If there is a moment at all, at least one is expected.
            count = total.clamp(min=1)
            intensity = (
                intensity * (count / total.clamp(min=torch.finfo(total.dtype).tiny))[:, None]
            )
            found, added = tables.cover(
                intensity, valid, reading.top_n, excludes=None if unlimited else excludes
            )
            # A moment hits once, however many are expected about there.
            added = added.clamp(0, 1)
            f1 = expected_set_f1(added, count).masked_fill(found < 0, -torch.inf)
            best, last = f1.max(dim=1)
            none = _is_empty(present[part], best)
            places = torch.arange(reading.top_n, device=scores.device)
            found = found.where((places <= last[:, None]) & ~none[:, None], -1)
            picks[part] = found if blocks is None else blocks.gather(found)
            hits[part] = added * present[part][:, None]
    return _Sets(picks, hits, present)


def _is_empty(present: Tensor, f1: Tensor) -> Tensor:
    """Whether no moment is the best set, where the best other one has `f1` if there is a moment."""
    return 1 - present >= present * f1


def _ranked(
    candidates: Tensor, found: _Sets, clip_seconds: Tensor | None, durations: Tensor | None
) -> RankedMoments:
    scores = found.hits.masked_fill(found.picks < 0, -torch.inf)
    ranked = to_ranked_moments(candidates, found.picks, scores, clip_seconds, durations)
    return replace(ranked, present=found.present)


def _check(
    who: str,
    candidates: Tensor,
    scores: Tensor,
    clip_seconds: Tensor | None,
    durations: Tensor | None,
    presence: Tensor | None,
    reading: _Reading,
) -> None:
    check_scored(who, candidates, scores, clip_seconds, durations)
    check_int(who, "top_n", reading.top_n, at_least=1)
    reading.hits(scores.new_zeros(0))  # checks the thresholds
    check_deconvolution(who, reading.target, reading.num_iterations)
    check_range(who, "nms_threshold", reading.nms_threshold, 0, 1)
    if presence is not None:
        check_shape(who, "presence", presence, f"{len(scores)}")
        if not bool(((presence >= 0) & (presence <= 1)).all()):
            raise ArgumentError(message(who, "presence in [0, 1]", presence.tolist()))
