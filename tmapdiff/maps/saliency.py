"""From a map to the likelihood that each clip, or the video at all, holds the answer."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tmapdiff._core.checks import check_int, check_range, check_shape
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.maps.expected_hits import candidate_likelihoods
from tmapdiff.maps.grid import MapGrid
from tmapdiff.maps.multiscale import MultiScaleMapSampler


def map_saliency(
    packed: Tensor,
    grid: MapGrid,
    num_clips: Tensor | None = None,
    *,
    target: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute how likely each clip lies in the answer: highlights without trained weights.

    The maps are merged and turned into likelihoods of moments (`candidate_likelihoods`), which are
    summed, for each clip, over all moments that contain it.

    Args:
        packed: Expected maps of all scales, as `MapLocalizer.predict_maps` returns them. Invalid
            cells are ignored; -inf marks a missing candidate.
        grid: The candidate moments.
        num_clips: Clips of each video, when videos are shorter than the grid.
        target: The quantity that maps are an expectation of, as for `rank_by_expected_hits`.

    Shape:
        - packed: (B, cells)
        - num_clips: (B,), integer
        - returns: (B, N), in [0, 1]; 0 past a video's end

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: As in `MapGrid.check_num_clips`, or if `target` is not a function.
    """
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    likelihood = candidate_likelihoods(candidates, scores, target=target)
    return clip_saliency(likelihood, candidates, grid.num_clips)


def map_presence(
    packed: Tensor,
    grid: MapGrid,
    num_clips: Tensor | None = None,
    *,
    target: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute the likelihood that the video holds the answer: the sum over its moments.

    The map is an expectation over queries with and without an answer, and 0 for the latter. The sum
    means nothing for a model that never saw a query without an answer, nor for a
    `SimilarityLocalizer`, whose likelihoods sum to 1 by construction. It is not calibrated:
    `tmapdiff.evaluation.fit_presence` turns it into a probability.

    Arguments and errors are as for `map_saliency`.

    Shape:
        - returns: (B,), in [0, 1]
    """
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    return candidate_likelihoods(candidates, scores, target=target).sum(dim=1).clamp(max=1)


def clip_saliency(likelihood: Tensor, candidates: Tensor, num_clips: int) -> Tensor:
    """Sum, for each clip, the likelihoods of the candidates that contain it.

    Time and memory are linear in candidates and clips. Never synchronizes with the device.

    Args:
        likelihood: Likelihood of each candidate, as `candidate_likelihoods` returns it.
        candidates: Start and end of each, in whole clips. Parts past `num_clips` are ignored.
        num_clips: Clips.

    Shape:
        - likelihood: (B, M)
        - candidates: (M, 2), integer
        - returns: (B, num_clips), in [0, 1] if the likelihoods sum to 1 at most

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `num_clips` is below 1.
    """
    who = "clip_saliency"
    sizes = check_shape(who, "likelihood", likelihood, "B M")
    check_shape(who, "candidates", candidates, "M 2", sizes)
    check_int(who, "num_clips", num_clips, at_least=1)
    start, end = candidates.long().clamp(0, num_clips).unbind(-1)
    # Add at the start and subtract at the end; in double precision no rounding error remains.
    steps = likelihood.new_zeros(sizes["B"], num_clips + 1, dtype=torch.float64)
    added = likelihood.double()
    steps.index_add_(1, start, added).index_add_(1, end, added, alpha=-1)
    return steps[:, :-1].cumsum(dim=1).clamp(min=0).to(likelihood)


def resample_saliency(
    saliency: Tensor, clip_seconds: float, duration: float, seconds: float = 2.0
) -> Tensor:
    """Resample the saliency of a video's clips to pieces of another length.

    Each piece gets the mean over its time; after the last clip, saliency is 0. Only pieces that end
    inside the video are kept, as QVHighlights counts its 2 s clips. A video shorter than a piece
    becomes a single, shorter one.

    Args:
        saliency: One number per clip.
        clip_seconds: Seconds per clip.
        duration: Seconds the video lasts.
        seconds: Seconds per piece.

    Shape:
        - saliency: (N,)
        - returns: (pieces,), float64, on the CPU

    Raises:
        ShapeError: If `saliency` is not (N,).
        ArgumentError: If a number of seconds is not positive.
        SizeLimitError: If the pieces take more memory than `TMAPDIFF_MAX_ITEM_BYTES` allows.
    """
    who = "resample_saliency"
    check_shape(who, "saliency", saliency, "N")
    named = {"clip_seconds": clip_seconds, "duration": duration, "seconds": seconds}
    for name, value in named.items():
        check_range(who, name, value, 0, open_low=True)
    own = saliency.detach().cpu().double().numpy()
    pieces = max(int(duration / seconds + 1e-6), 1)  # 0.6 / 0.2 is below 3
    check_item_bytes(who, f"pieces of {seconds:g} s", 8 * pieces)
    ends = np.arange(pieces + 1) * seconds
    ends = ends.clip(max=duration)
    # The integral over time is linear within a clip.
    integral = np.concatenate([[0.0], own.cumsum()]) * clip_seconds
    until = np.interp(ends, np.arange(len(integral)) * clip_seconds, integral)
    return torch.from_numpy(np.diff(until) / np.diff(ends))
