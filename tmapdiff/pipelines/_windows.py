"""Windows for videos that are longer than the training videos."""

import math
import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

from tmapdiff._core.checks import check_list, check_range, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import MapGrid

Durations = tuple[float, float, float]  # shortest, median and longest
Window = tuple[int, int]  # first clip, and the clip after the last


def summarize_durations(who: str, durations: Iterable[float]) -> Durations:
    """Return the shortest, the median and the longest duration."""
    listed = check_list(who, "durations", durations)
    seconds = [check_range(who, "durations", one, 0, open_low=True) for one in listed]
    if not seconds:
        raise ArgumentError(message(who, "at least one duration", "none"))
    return min(seconds), statistics.median(seconds), max(seconds)


def count_clips(duration: float, trained: Durations | None, grid: MapGrid) -> int:
    """Return the number of clips of a video: the grid's, or more if it is longer than in training.

    In a longer video, the grid's number of clips lasts about the median duration of training. The
    result is rounded to whole clips of the coarsest scale.
    """
    if trained is None or duration <= trained[2]:
        return grid.num_clips
    coarsest = grid.stride(grid.num_scales - 1)
    clips = grid.num_clips * duration / trained[1]
    return max(grid.num_clips, round(clips / coarsest) * coarsest)


def divide_in_windows(num_clips: int, grid: MapGrid) -> tuple[Window, ...]:
    """Divide a video into windows as long as the grid, each overlapping the next by half.

    They start where cells of the coarsest scale start, so that their cells are cells of the video.
    """
    coarsest, last = grid.stride(grid.num_scales - 1), num_clips - grid.num_clips
    step = max(grid.num_clips // 2 // coarsest, 1) * coarsest
    return tuple((start, start + grid.num_clips) for start in (*range(0, last, step), last))


def join_windows(
    maps: Tensor, windows: Iterable[Window], grid: MapGrid, whole: MapGrid
) -> tuple[Tensor, Tensor]:
    """Merge the maps of windows into those of their video, with the mean where windows overlap.

    Shape:
        - maps: (windows, S, cells) of `grid`, 0 in invalid cells
        - returns: (S, cells) of `whole`, -inf in cells outside all windows; and which cells lie in
          a window: (cells,), bool
    """
    joined, counts = [], []
    for scale, parts in enumerate(grid.unpack(maps.flatten(0, 1))):
        held = grid.mask(scale, maps.device)
        total = maps.new_zeros(maps.shape[1], *whole.shape(scale))
        count = maps.new_zeros(whole.shape(scale))
        for (start, _), part in zip(windows, parts.unflatten(0, maps.shape[:2]), strict=True):
            first = start // grid.stride(scale)
            rows = slice(first, first + len(held))
            total[:, rows] += part
            count[rows] += held
        joined.append((total / count).masked_fill(count == 0, -math.inf))
        counts.append(count.flatten())
    return whole.pack(joined), torch.cat(counts) > 0


def generators_of_windows(
    generators: Iterable[torch.Generator], counts: Iterable[int]
) -> list[list[torch.Generator]]:
    """Make a generator for each window of each query, independent of batching."""
    found = []
    for generator, count in zip(generators, counts, strict=True):
        if count == 1:
            found.append([generator])
            continue
        seeds = torch.randint(2**63 - 1, (count,), generator=generator, device=generator.device)
        found.append([torch.Generator(generator.device).manual_seed(s) for s in seeds.tolist()])
    return found
