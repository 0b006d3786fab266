"""From one dense map to sparse maps on several scales, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tmapdiff._core.checks import check_length, check_shape
from tmapdiff.maps.grid import MapGrid


@dataclass(frozen=True)
class MultiScaleMapSampler:
    """Samples the maps of all scales from a dense map, and merges them again.

    `split` takes `Y_k[i, j] = Y[i * 2**k, (j + 1) * 2**k - 1]`; `merge` gives each dense cell the
    highest score among the scales that hold it. Works on scores and on features.

    Args:
        grid: The candidate moments.

    Source: Zhang et al., arXiv 2401.08232, section 3.2, after MS-2D-TAN, arXiv 2012.02646.
    """

    grid: MapGrid

    def split(self, dense: Tensor) -> list[Tensor]:
        """Sample one sparse map per scale.

        Args:
            dense: Values of candidates at `[start clip, duration in clips - 1]`.

        Shape:
            - dense: (B, N, N) or (B, C, N, N)
            - returns: K tensors (B, N_k, A) or (B, C, N_k, A), 0 in invalid cells

        Raises:
            ShapeError: If `dense` has another shape.
        """
        clips = self.grid.num_clips
        _check_map("MultiScaleMapSampler.split", "dense", dense, clips, clips, {})
        # Not a product with the mask: an invalid cell may hold NaN.
        return [
            self.grid.dense_cells(dense, k).where(self.grid.mask(k, dense.device), 0)
            for k in range(self.grid.num_scales)
        ]

    def merge(
        self, maps: Sequence[Tensor], num_clips: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Merge the maps of all scales into one dense map.

        Args:
            maps: One map per scale, finest first. Invalid cells are ignored.
            num_clips: Clips of each video, when videos are shorter than the grid.

        Shape:
            - maps: K tensors (B, N_k, A) or (B, C, N_k, A)
            - num_clips: (B,), integer
            - returns: dense map (B, N, N) or (B, C, N, N), and its mask, bool, (N, N), or (B, N, N)
              with `num_clips`; cells outside the mask are on no scale and contain -inf

        Raises:
            ShapeError: If there are not `num_scales` maps, or one has another shape.
            ArgumentError: As in `MapGrid.check_num_clips`.
        """
        who = "MultiScaleMapSampler.merge"
        check_length(who, "maps", maps, self.grid.num_scales)
        sizes: dict[str, int] = {}
        for scale, (rows, columns) in enumerate(self.grid.shapes):
            sizes = _check_map(who, f"maps[{scale}]", maps[scale], rows, columns, sizes)

        if num_clips is not None:
            check_shape(who, "num_clips", num_clips, "B", sizes)
        finest, clips = maps[0], self.grid.num_clips
        dense = finest.new_full((*finest.shape[:-2], clips, clips), -torch.inf)
        for scale, scores in enumerate(maps):
            cells = self.grid.dense_cells(dense, scale)
            valid = self.grid.mask(scale, dense.device, num_clips)
            if num_clips is not None and scores.dim() == 4:
                valid = valid[:, None]
            # Autograd keeps the clone, as the cells are overwritten.
            cells[:] = torch.maximum(cells.clone(), scores.masked_fill(~valid, -torch.inf))
        return dense, self.grid.dense_mask(dense.device, num_clips)

    def merge_packed(
        self, packed: Tensor, num_clips: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Merge packed maps into one score per candidate, without a dense map.

        Memory is linear in the clips. Synchronizes with the device only on the first call with a
        grid.

        Args:
            packed: Packed maps, as from `MapGrid.pack`. Invalid cells are ignored.
            num_clips: Clips of each video, when videos are shorter than the grid.

        Shape:
            - packed: (B, cells)
            - num_clips: (B,), integer
            - returns: unique candidate moments in clips, sorted by start and then by duration:
              (M, 2), int64; and their scores, -inf where a moment ends after its video: (B, M)

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: As in `MapGrid.check_num_clips`.
        """
        who = "MultiScaleMapSampler.merge_packed"
        sizes = check_shape(who, "packed", packed, f"B {self.grid.num_cells}")
        if num_clips is not None:
            check_shape(who, "num_clips", num_clips, "B", sizes)
            self.grid.check_num_clips(num_clips)
        distinct = distinct_moments(self.grid, packed.device)
        on_scales = packed.index_select(1, distinct.cells.flatten())
        scores = on_scales.unflatten(1, distinct.cells.shape).amax(2)
        if num_clips is not None:
            # Whether a moment ends inside a video does not depend on the scale that holds it.
            over = distinct.moments[:, 1] > num_clips.to(packed.device)[:, None]
            scores = scores.masked_fill(over, -torch.inf)
        # Copy, as the original is cached.
        return distinct.moments.clone(), scores


class DistinctMoments(NamedTuple):
    """The candidate moments of a grid without repetitions, sorted by start, then by duration.

    Shape:
        - moments: (M, 2), in clips
        - cells: (M, K), the cell of each moment on each scale; where it is on none, another of its
          cells
        - places: (cells,), the moment of each cell; arbitrary for invalid cells
    """

    moments: Tensor
    cells: Tensor
    places: Tensor


# Each batch of long videos has its own grid, so a few are cached.
@lru_cache(maxsize=16)
def distinct_moments(grid: MapGrid, device: torch.device) -> DistinctMoments:
    """List the distinct moments of a grid."""
    with torch.inference_mode(False):
        valid = grid.packed_mask().nonzero()[:, 0]
        moments = grid.packed_moments()
        start, end = moments[valid].unbind(-1)
        keys, of_valid = (start * (grid.num_clips + 1) + end).unique(return_inverse=True)
        scales = torch.arange(grid.num_scales).repeat_interleave(torch.tensor(grid.cells_per_scale))
        cells = valid.new_empty(len(keys)).scatter_(0, of_valid, valid)
        places = valid.new_zeros(grid.num_cells).scatter_(0, valid, of_valid)
        on_scales = cells[:, None].repeat(1, grid.num_scales)
        on_scales[of_valid, scales[valid]] = valid
        return DistinctMoments(*(x.to(device) for x in (moments[cells], on_scales, places)))


def _check_map(
    who: str, name: str, tensor: Tensor, rows: int, columns: int, sizes: dict[str, int]
) -> dict[str, int]:
    features = isinstance(tensor, Tensor) and tensor.dim() == 4
    axes = f"B C {rows} {columns}" if features else f"B {rows} {columns}"
    return check_shape(who, name, tensor, axes, sizes, "Features are (B, C, rows, columns).")
