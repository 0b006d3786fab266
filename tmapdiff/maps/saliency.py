"""From likelihoods of moments to highlights: how likely each clip lies in the answer."""

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
    """Compute how likely each clip lies in the answer: highlights without any weights.

    The maps are merged and taken apart into likelihoods of moments (`candidate_likelihoods`); a
    clip has the sum of those of all moments that hold it.

    Args:
        packed: Expected maps of all scales, as `MapLocalizer.predict_maps` gives them. Invalid
            cells are not read; one of -inf is no candidate.
        grid: The candidate moments.
        num_clips: Clips of each video, when videos are shorter than the grid.
        target: What the maps are an expectation of, as for `rank_by_expected_hits`.

    Shape:
        - packed: (B, cells)
        - num_clips: (B,), integer
        - returns: (B, N), in [0, 1]; 0 past a video's end

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: As `MapGrid.check_num_clips`, or if `target` is no function.
    """
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    likelihood = candidate_likelihoods(candidates, scores, target=target)
    return clip_saliency(likelihood, candidates, grid.num_clips)


def clip_saliency(likelihood: Tensor, candidates: Tensor, num_clips: int) -> Tensor:
    """Sum, for each clip, the likelihoods of the candidates that hold it.

    Takes time and memory linear in candidates and clips, and never waits for the device.

    Args:
        likelihood: How likely each candidate is the answer, as `candidate_likelihoods` finds it.
        candidates: Start and end of each in whole clips; past `num_clips` nothing counts.
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
    # What begins is added and what ends taken away again: in double, nothing is left of it.
    steps = likelihood.new_zeros(sizes["B"], num_clips + 1, dtype=torch.float64)
    added = likelihood.double()
    steps.index_add_(1, start, added).index_add_(1, end, added, alpha=-1)
    return steps[:, :-1].cumsum(dim=1).clamp(min=0).to(likelihood)


def resample_saliency(
    saliency: Tensor, clip_seconds: float, duration: float, seconds: float = 2.0
) -> Tensor:
    """Bring the saliency of a video's clips to pieces of another length.

    Each gets the mean over the time that it covers; after the last clip it is 0. There are as many
    as end inside the video, as QVHighlights counts its clips of 2 s; of a video shorter than one, a
    single shorter one.

    Args:
        saliency: One number for each clip.
        clip_seconds: Seconds a clip lasts.
        duration: Seconds the video lasts.
        seconds: Seconds a piece lasts.

    Shape:
        - saliency: (N,)
        - returns: (pieces,), float64, on the CPU

    Raises:
        ShapeError: If `saliency` is not (N,).
        ArgumentError: If a number of seconds is not positive.
        SizeLimitError: If pieces take more memory than an item may (`TMAPDIFF_MAX_ITEM_BYTES`).
    """
    who = "resample_saliency"
    check_shape(who, "saliency", saliency, "N")
    named = {"clip_seconds": clip_seconds, "duration": duration, "seconds": seconds}
    for name, value in named.items():
        check_range(who, name, value, 0, open_low=True)
    own = saliency.detach().cpu().double().numpy()
    pieces = max(int(duration / seconds), 1)
    check_item_bytes(who, f"pieces of {seconds:g} s", 8 * pieces)
    ends = np.arange(pieces + 1) * seconds
    ends = ends.clip(max=duration)
    # The integral up to a time is linear between the ends of clips.
    integral = np.concatenate([[0.0], own.cumsum()]) * clip_seconds
    until = np.interp(ends, np.arange(len(integral)) * clip_seconds, integral)
    return torch.from_numpy(np.diff(until) / np.diff(ends))
