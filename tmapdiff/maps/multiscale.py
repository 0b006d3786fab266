"""From one dense map to sparse maps on several scales, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tmapdiff._core.checks import check_length, check_shape
from tmapdiff.errors import ShapeError
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
            self.grid.check_num_clips(num_clips)
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
        candidates, cells, again = _candidates(self.grid, packed.device)
        scores = packed.index_select(1, cells)
        for places, others in again:
            best = scores.index_select(1, places).maximum(packed.index_select(1, others))
            scores.index_copy_(1, places, best)
        if num_clips is not None:
            # Whether a moment ends inside a video does not depend on the scale that holds it.
            over = candidates[:, 1] > num_clips.to(candidates)[:, None]
            scores = scores.masked_fill(over, -torch.inf)
        # Copy, as the original is cached.
        return candidates.clone(), scores


# Each batch of long videos has its own grid, so a few are cached.
@lru_cache(maxsize=16)
def _candidates(
    grid: MapGrid, device: torch.device
) -> tuple[Tensor, Tensor, tuple[tuple[Tensor, Tensor], ...]]:
    """Return the moments of a grid, the cell of each on one scale, and its cells on other scales.

    Shape:
        - returns: (M, 2); (M,); for each further scale, places of moments and their cells on it
    """
    with torch.inference_mode(False):
        cells = grid.packed_mask().nonzero()[:, 0]
        moments = grid.packed_moments()[cells]
        start, end = moments.unbind(-1)
        # By start, then by duration.
        _, places = (start * (grid.num_clips + 1) + end).unique(return_inverse=True)
        count = int(places.max()) + 1
        first = torch.full((count,), -1)
        again = []
        lasts = torch.tensor(grid.cells_per_scale).cumsum(0)
        scales = torch.searchsorted(lasts, cells, right=True)
        for scale in range(grid.num_scales):
            own, held = cells[scales == scale], places[scales == scale]
            known = first[held] >= 0
            again.append((held[known].to(device), own[known].to(device)))
            first[held[~known]] = own[~known]
        candidates = torch.empty(count, 2, dtype=moments.dtype)
        candidates[places] = moments
        return candidates.to(device), first.to(device), tuple(again[1:])


def _check_map(
    who: str, name: str, tensor: Tensor, rows: int, columns: int, sizes: dict[str, int]
) -> dict[str, int]:
    features = isinstance(tensor, Tensor) and tensor.dim() == 4
    axes = f"B C {rows} {columns}" if features else f"B {rows} {columns}"
    try:
        return check_shape(who, name, tensor, axes, sizes)
    except ShapeError as error:
        raise ShapeError(f"{error} Features are (B, C, rows, columns).") from None
