"""From a map of scores to ranked moments: non-maximum suppression and top n."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tmapdiff._core.checks import check_floating, check_int, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.overlap import temporal_iou


@dataclass(frozen=True)
class RankedMoments:
    """The moments of each query, best first; with `presence`, the set that answers it.

    Queries with fewer than n moments are padded.

    Shape:
        - moments: (B, n, 2), in seconds or clips; padded with 0
        - scores: (B, n); padded with -inf
        - valid: (B, n), bool; False for padding
        - clips: (B, n, 2), int64, the moments' map cells as first clip and clip after the last;
          padded with 0. None for moments that are not read from a map
        - presence: (B,), probability that the query has a moment. None unless moments form sets
    """

    moments: Tensor
    scores: Tensor
    valid: Tensor
    clips: Tensor | None = None
    presence: Tensor | None = None

    @property
    def num_moments(self) -> Tensor:
        """Number of moments of each query, (B,)."""
        return self.valid.sum(dim=1)

    def __len__(self) -> int:
        return len(self.moments)


def temporal_nms(moments: Tensor, scores: Tensor, *, threshold: float, top_n: int) -> Tensor:
    """Pick the best moments of each query, skipping those that overlap a better one too much.

    Greedy non-maximum suppression: repeatedly take the best remaining moment and drop all whose IoU
    with it exceeds the threshold. Processes all queries together.

    Args:
        moments: Candidates, shared by all queries or separate for each, in any unit.
        scores: Scores of candidates; those with -inf or NaN are never picked.
        threshold: Highest IoU that two picked moments may have, in [0, 1].
        top_n: Moments to pick.

    Shape:
        - moments: (M, 2) or (B, M, 2)
        - scores: (B, M)
        - returns: (B, top_n) indices into the candidates, int64; -1 where none is left

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If scores are integers, `threshold` is outside [0, 1] or `top_n` is below 1.
    """
    who = "temporal_nms"
    sizes = check_shape(who, "scores", scores, "B M")
    check_floating(who, "scores", scores)
    shared = isinstance(moments, Tensor) and moments.dim() == 2
    check_shape(who, "moments", moments, "M 2" if shared else "B M 2", sizes)
    check_range(who, "threshold", threshold, 0, 1)
    check_int(who, "top_n", top_n, at_least=1)

    if not sizes["M"]:
        return scores.new_full((sizes["B"], top_n), -1, dtype=torch.int64)
    left = scores.detach().masked_fill(scores.isnan(), -torch.inf)
    # A grid's candidates are whole clips, whose IoUs are then compared without rounding error.
    candidates = moments.double()
    rows = torch.arange(sizes["B"], device=scores.device)
    # Precompute all pairs of shared candidates if that is less work than one row per pick.
    table = None
    if shared and sizes["M"] <= sizes["B"] * top_n:
        table = temporal_iou(candidates, candidates[:, None]) > threshold
    picks = []
    for _ in range(top_n):
        best, index = left.max(dim=1)
        picks.append(index.where(best > -torch.inf, -1))
        if table is not None:
            near = table[index]
        else:
            picked = candidates[index] if shared else candidates[rows, index]
            near = temporal_iou(candidates, picked[:, None]) > threshold
        left.masked_fill_(near, -torch.inf)
        # The IoU of an empty candidate with itself is 0.
        left.scatter_(1, index[:, None], -torch.inf)
    return torch.stack(picks, dim=1)


def rank_moments(
    dense: Tensor,
    mask: Tensor,
    clip_seconds: Tensor | None = None,
    *,
    durations: Tensor | None = None,
    top_n: int = 5,
    nms_threshold: float = 0.49,
) -> RankedMoments:
    """Return the best moments of merged maps.

    Synchronizes with the device to count candidates; `rank_candidates` does not.

    Args:
        dense: Scores of candidates at `[start clip, duration in clips - 1]`, as
            `MultiScaleMapSampler.merge` returns them.
        mask: Which cells are candidates.
        clip_seconds: Seconds per clip, for each sample. Without it, moments are in clips.
        durations: Seconds each video lasts. Moments are cut there.
        top_n: Moments per query.
        nms_threshold: Highest IoU that two moments of a query may have, in [0, 1].

    Shape:
        - dense: (B, N, N)
        - mask: (N, N) or (B, N, N), bool
        - clip_seconds, durations: (B,)

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `mask` is not bool, `nms_threshold` is outside [0, 1], or `top_n` is
            below 1.
    """
    return rank_candidates(
        *candidates_of("rank_moments", dense, mask),
        clip_seconds,
        durations=durations,
        top_n=top_n,
        nms_threshold=nms_threshold,
    )


def rank_candidates(
    candidates: Tensor,
    scores: Tensor,
    clip_seconds: Tensor | None = None,
    *,
    durations: Tensor | None = None,
    top_n: int = 5,
    nms_threshold: float = 0.49,
) -> RankedMoments:
    """Return the best moments from a list of candidates: `rank_moments` without a dense map.

    Takes the start and end of each candidate in clips, and its score, as
    `MultiScaleMapSampler.merge_packed` returns them. A score of -inf or NaN marks a missing
    candidate; ties go to the first. `clip_seconds`, `durations`, `top_n`, `nms_threshold` and
    errors are as for `rank_moments`. Never synchronizes with the device.

    Shape:
        - candidates: (M, 2)
        - scores: (B, M)
        - clip_seconds, durations: (B,)
    """
    check_scored("rank_candidates", candidates, scores, clip_seconds, durations)
    candidates, scores = at_least_one(candidates, scores)
    picks = temporal_nms(candidates, scores, threshold=nms_threshold, top_n=top_n)
    best = scores.gather(1, picks.clamp(min=0)).where(picks >= 0, -torch.inf)
    return to_ranked_moments(candidates, picks, best, clip_seconds, durations)


def check_scored(
    who: str,
    candidates: Tensor,
    scores: Tensor,
    clip_seconds: Tensor | None,
    durations: Tensor | None,
) -> None:
    """Raise an error unless shapes and scores fit `rank_candidates`."""
    sizes = check_shape(who, "scores", scores, "B M")
    check_floating(who, "scores", scores)
    check_shape(who, "candidates", candidates, "M 2", sizes)
    if clip_seconds is not None:
        check_shape(who, "clip_seconds", clip_seconds, "B", sizes)
    if durations is not None:
        check_shape(who, "durations", durations, "B", sizes)


def at_least_one(candidates: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return candidates, (M, 2), and their scores, (..., M); if M is 0, of one that is missing."""
    if len(candidates):
        return candidates, scores
    return candidates.new_ones(1, 2), scores.new_full((*scores.shape[:-1], 1), -torch.inf)


def candidates_of(who: str, dense: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Check merged maps and return their candidate moments, in clips, and the scores of these.

    Shape:
        - dense: (B, N, N)
        - mask: (N, N) or (B, N, N), bool
        - returns: (M, 2), int64, and (B, M), -inf where a sample's mask has no candidate
    """
    sizes = check_shape(who, "dense", dense, "B N N")
    batched = isinstance(mask, Tensor) and mask.dim() == 3
    check_shape(who, "mask", mask, "B N N" if batched else "N N", sizes)
    if mask.dtype != torch.bool:
        raise ArgumentError(message(who, "a bool mask", mask.dtype))
    if batched:
        dense = dense.masked_fill(~mask, -torch.inf)
        mask = mask.any(dim=0)
    cells = mask.flatten().nonzero()[:, 0]  # synchronizes with the device
    starts, columns = cells // sizes["N"], cells % sizes["N"]
    candidates = torch.stack([starts, starts + columns + 1], dim=-1)
    return candidates, dense.flatten(1).index_select(1, cells)


def to_ranked_moments(
    candidates: Tensor,
    picks: Tensor,
    scores: Tensor,
    clip_seconds: Tensor | None,
    durations: Tensor | None,
) -> RankedMoments:
    """Turn picked candidates into ranked moments, in seconds or clips.

    Shape:
        - candidates: (M, 2), in clips
        - picks, scores: (B, n); -1 and -inf where no candidate is left
        - clip_seconds, durations: (B,)
    """
    valid = picks >= 0
    picked = candidates[picks.clamp(min=0)].where(valid[..., None], 0)
    if clip_seconds is None:
        moments = picked.to(torch.promote_types(scores.dtype, torch.float32))
    else:
        # Products in half precision would be rounded to seconds, and in small integers overflow.
        wide = torch.promote_types(clip_seconds.dtype, torch.float32)
        moments = picked * clip_seconds.to(wide)[:, None, None]
    if durations is not None:
        # In the wider of the two dtypes: rounding must not move an end past the video's.
        moments = torch.minimum(moments, durations.to(moments.device)[:, None, None])
    return RankedMoments(moments=moments, scores=scores, valid=valid, clips=picked)
