"""Contrast of candidate moments with their surroundings, from prefix sums over a video's rows."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tmapdiff._core.checks import check_floating, check_length, check_shape, check_sizes, message
from tmapdiff.errors import ConfigError, ShapeError
from tmapdiff.maps.grid import MapGrid

_THRESHOLDS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LENGTH_POWER = 0.3
_EDGE_ROWS = 2
_LARGEST_CONTRAST = 3.0
_OUTSIDE = -0.8  # assumed similarity before and after the video
_SMALLEST_DEVIATION = 1e-6

_SIDES = ("over half before", "over half after", "over full before", "over full after")
CONTRASTS = (
    *(f"fine {name}" for name in ("mean", *_SIDES, "before", "after", "first", "last")),
    *(f"middle {name}" for name in ("mean", *_SIDES)),
    *(f"middle above {threshold:g}" for threshold in _THRESHOLDS),
    "coarse mean",
)
REACHES = (1, 3, 6)  # rows over which changes are measured
CHANGES = tuple(
    f"change over {reach} {where}"
    for where in ("at start", "at end", "inside")
    for reach in REACHES
)
GEOMETRY = ("log length", "log length squared", "share of the video", "at start", "at end")


def contrast_features(
    similarity: Tensor,
    grid: MapGrid,
    num_clips: Tensor | None = None,
    *,
    smoothings: Sequence[int] = (1, 5, 9),
) -> Tensor:
    """Compute how each candidate moment contrasts with its video, for every similarity.

    A similarity measures how well each row of a video fits a sentence; a clip has one or more rows.
    It is smoothed at three levels, fine, middle and coarse (means over 1, 5 and 9 rows; the first
    and last row are repeated beyond the ends), then standardized over the rows of its video.
    `CONTRASTS` holds, for each candidate:

    - `mean`: the mean inside (fine, middle, coarse)
    - `over half before`, `over full after`, ...: the mean inside minus the mean over half or all of
      the candidate's length before or after it; at most 3 (fine, middle)
    - `before`, `after`, `first`, `last`: means of the 2 rows before and after it, and of its first
      and last 2 (fine)
    - `above 0.5`, ...: the sum of differences from a threshold, divided by the length to the power
      0.3, which favors moments that are both long and similar (middle)

    `GEOMETRY` holds the logarithm of its rows, the square of that, its share of the video, and
    whether it starts or ends with the video. Rows outside the video count as -0.8.

    Computes in float32 or wider, in time linear in the candidates. Differentiable in `similarity`.

    Args:
        similarity: Similarities of each row. Rows after a video's clips are ignored.
        grid: The candidate moments.
        num_clips: Clips of each video. Defaults to the grid's.
        smoothings: Rows per mean of the three levels; odd.

    Shape:
        - similarity: (B, S, num_clips * rows per clip), S similarities
        - num_clips: (B,), integer
        - returns: (B, 20 * S + 5, cells): each of `CONTRASTS` for all similarities, then
          `GEOMETRY`; 0 in invalid cells

    Raises:
        ShapeError: If a shape does not fit, or there are not three smoothings.
        ArgumentError: If `similarity` is not floating, a smoothing is below 1, or as in
            `MapGrid.check_num_clips`.
        ConfigError: If a smoothing is even.
    """
    who = "contrast_features"
    check_shape(who, "similarity", similarity, "B S T")
    check_smoothings(who, smoothings)
    cells = _Cells(who, "similarity", similarity, grid, num_clips)
    wide = cells.rows
    fine, middle, coarse = (cells.prefix_sums(cells.smoothed(wide, k)) for k in smoothings)

    # 1. Fine: means, sides and edges.
    features = [mean := cells.means(fine)]
    features += [(mean - side).clamp(max=_LARGEST_CONTRAST) for side in cells.sides(fine)]
    features += [*cells.around(fine, cells.edge), *cells.edges(fine)]

    # 2. Middle: means, sides and sums over thresholds.
    features.append(mean := cells.means(middle))
    features += [(mean - side).clamp(max=_LARGEST_CONTRAST) for side in cells.sides(middle)]
    weight = cells.column(cells.length.to(wide.dtype) ** (1 - _LENGTH_POWER))
    features += [(mean - threshold) * weight for threshold in _THRESHOLDS]

    # 3. Coarse: means.
    features.append(cells.means(coarse))
    batch = wide.shape[0]  # not `len`, which would fix the batch size of an exported graph
    features.append(cells.geometry(wide.dtype).expand(-1, -1, batch))
    return cells.finish(torch.cat(features, dim=1)).to(similarity.dtype)


def check_smoothings(who: str, smoothings: Sequence[int]) -> None:
    """Raise ShapeError, ArgumentError or ConfigError unless they are three odd numbers of rows."""
    check_length(who, "smoothings", smoothings, 3)
    for size in check_sizes(who, "smoothings", smoothings):
        if size % 2 == 0:
            raise ConfigError(message(who, "odd smoothings", size))


def cell_means(rows: Tensor, grid: MapGrid, num_clips: Tensor | None = None) -> Tensor:
    """Compute the mean of a video's rows over each candidate moment, in float32 or wider.

    Args:
        rows: Features. Rows after a video's clips are ignored.
        grid: The candidate moments.
        num_clips: Clips of each video. Defaults to the grid's.

    Shape:
        - rows: (B, num_clips * rows per clip, D)
        - num_clips: (B,), integer
        - returns: (B, D, cells), 0 in invalid cells

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `rows` is not floating, or as in `MapGrid.check_num_clips`.
    """
    cells = _cells_of("cell_means", rows, grid, num_clips)
    return cells.finish(cells.means(cells.prefix_sums(cells.rows))).to(rows.dtype)


def cell_context(rows: Tensor, grid: MapGrid, num_clips: Tensor | None = None) -> Tensor:
    """Compute means of a video's rows in and around each candidate moment, in float32 or wider.

    The five means are over all rows inside, the first 2, the last 2, and equally many rows before
    and after as inside; 0 where there are none. Arguments and errors are as for `cell_means`.

    Shape:
        - returns: (B, 5 * D, cells), 0 in invalid cells
    """
    cells = _cells_of("cell_context", rows, grid, num_clips)
    sums = cells.prefix_sums(cells.rows)
    around = cells.around(sums, cells.length, outside=0.0)
    parts = [cells.means(sums), *cells.edges(sums), *around]
    return cells.finish(torch.cat(parts, dim=1)).to(rows.dtype)


def change_features(rows: Tensor, grid: MapGrid, num_clips: Tensor | None = None) -> Tensor:
    """Compute how much a video changes at the ends of each candidate moment and inside it.

    Changes (`change_of`) over 1, 3 and 6 rows are standardized over the rows of their video.
    `CHANGES` holds their values at the start and end, and their mean inside; the ends of the video
    count as 0. No query is needed: moments tend to begin and end where the image changes. Arguments
    and errors are as for `cell_means`.

    Shape:
        - returns: (B, 9, cells), 0 in invalid cells
    """
    cells = _cells_of("change_features", rows, grid, num_clips)
    changes = [change_of(cells.rows.mT, reach, cells.inside) for reach in REACHES]
    standard = standardize(torch.cat(changes, dim=1), cells.inside)
    sums = cells.prefix_sums(F.pad(standard[:, :, 1:], (1, 0)))  # 0 at the start of the video
    first, at_start, at_end = (
        sums.index_select(0, x) for x in (cells.after, cells.start, cells.end)
    )
    beyond = sums.index_select(0, (cells.end + 1).clamp(max=cells.num_rows))
    within = (at_end - first) / cells.column(cells.length)
    return cells.finish(torch.cat([first - at_start, beyond - at_end, within], 1)).to(rows.dtype)


def change_of(rows: Tensor, reach: int, inside: Tensor) -> Tensor:
    """Compute the change of a video at each row: 1 - cosine of `reach` rows before and after it.

    `rows`, (B, T, D), are 0 after the video, and `inside`, (B, 1, T), marks those of the video. The
    current row belongs to those after. Returns (B, 1, T), 0 at the first row.
    """
    sums = F.pad(rows.cumsum(1), (0, 0, 1, 0))
    places = torch.arange(rows.shape[1], device=rows.device)
    before = sums[:, :-1] - sums[:, (places - reach).clamp(min=0)]
    after = sums[:, (places + reach).clamp(max=len(places))] - sums[:, :-1]
    change = 1 - F.cosine_similarity(before, after, dim=-1, eps=_SMALLEST_DEVIATION**2)
    return (change * (places > 0))[:, None].where(inside, 0)


def standardize(
    rows: Tensor, inside: Tensor, least_deviation: float = _SMALLEST_DEVIATION
) -> Tensor:
    """Shift and scale rows, (B, S, T), to mean 0 and variance 1 over those `inside`, (B, 1, T).

    Rows outside are ignored and become 0. Equal rows become 0, too, as the square of
    `least_deviation` is added to the variance.
    """
    count = inside.sum(2, keepdim=True)
    centered = (rows - rows.where(inside, 0).sum(2, keepdim=True) / count).where(inside, 0)
    variance = centered.square().sum(2, keepdim=True) / count
    # Not a scalar: exporting to ONNX would drop one below 1e-8, and equal rows be 0 / 0.
    least = variance.new_full((1, 1, 1), least_deviation**2)
    return centered / (variance + least).sqrt()


class _Cells:
    """The candidate moments of a grid over rows, (B, S, T), and sums over them: (cells, S, B)."""

    def __init__(
        self, who: str, name: str, rows: Tensor, grid: MapGrid, num_clips: Tensor | None
    ) -> None:
        check_floating(who, name, rows)
        batch, _, self.num_rows = rows.shape
        each, rest = divmod(self.num_rows, grid.num_clips)
        if rest or not each:
            expected = f"the number of rows to be a multiple of the grid's {grid.num_clips} clips"
            raise ShapeError(message(who, expected, self.num_rows))
        grid.check_num_clips(num_clips)
        self.counts = None
        self.inside = rows.new_ones(batch, 1, self.num_rows, dtype=torch.bool)
        if num_clips is not None:
            check_shape(who, "num_clips", num_clips, "B", {"B": batch})
            num_clips = num_clips.to(rows.device).long()  # its product may not fit smaller integers
            self.counts = num_clips * each  # rows of each video
            places = torch.arange(self.num_rows, device=rows.device)
            self.inside = (places < self.counts[:, None])[:, None]
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self.rows = wide.where(self.inside, 0)
        self.valid = grid.packed_mask(rows.device, num_clips)
        # Invalid cells may end after the rows.
        moments = (grid.packed_moments(rows.device) * each).clamp(max=self.num_rows)
        self.start, self.end = moments.unbind(-1)
        self.length = (self.end - self.start).clamp(min=1)
        self.after = (self.start + 1).clamp(max=self.num_rows)  # the first row of a candidate
        self.half = (self.length / 2).round().long().clamp(min=1)
        self.edge = torch.full_like(self.length, _EDGE_ROWS)

    # Rows, (B, S, T)

    def smoothed(self, similarity: Tensor, size: int) -> Tensor:
        """Smooth and standardize; 0 after the video."""
        reach = size // 2
        places = torch.arange(-reach, self.num_rows + reach, device=similarity.device).clamp(min=0)
        if self.counts is None:
            near = similarity.index_select(2, places.clamp(max=self.num_rows - 1))
        else:
            places = places.minimum(self.counts[:, None] - 1)
            near = similarity.gather(2, places[:, None].expand(-1, similarity.shape[1], -1))
        return standardize(near.unfold(2, size, 1).mean(-1), self.inside)

    @staticmethod
    def prefix_sums(rows: Tensor) -> Tensor:
        """Sum up to each row; rows are outermost, for cells to gather: (T + 1, S, B)."""
        return rearrange(F.pad(rows.cumsum(2), (1, 0)), "b s t -> t s b").contiguous()

    # Cells, (cells, S, B)

    @staticmethod
    def column(values: Tensor) -> Tensor:
        """Let values per cell broadcast over similarities and samples."""
        return values[:, None, None]

    def means(self, sums: Tensor) -> Tensor:
        """Average inside each cell."""
        inside = sums.index_select(0, self.end) - sums.index_select(0, self.start)
        return inside / self.column(self.length)

    def around(
        self, sums: Tensor, reach: Tensor, outside: float = _OUTSIDE
    ) -> tuple[Tensor, Tensor]:
        """Average `reach` rows, (cells,), before and after each cell."""
        first = (self.start - reach).clamp(min=0)
        before = sums.index_select(0, self.start) - sums.index_select(0, first)
        last = (self.end + reach).clamp(max=self.num_rows)
        # Prefix sums are constant after the video.
        after = sums.index_select(0, last) - sums.index_select(0, self.end)
        num_after = self.column(last - self.end)
        if self.counts is not None:
            num_after = self.column(last).minimum(self.counts) - self.column(self.end)
        return (
            _mean_or(outside, before, self.column(self.start - first)),
            _mean_or(outside, after, num_after),
        )

    def sides(self, sums: Tensor) -> list[Tensor]:
        """Average before and after, over half and over the full length of a cell."""
        return [*self.around(sums, self.half), *self.around(sums, self.length)]

    def edges(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Average the first and the last rows inside."""
        own = self.length.clamp(max=_EDGE_ROWS)
        at_start, at_end = (sums.index_select(0, one) for one in (self.start, self.end))
        first = sums.index_select(0, (self.start + own).clamp(max=self.num_rows)) - at_start
        last = at_end - sums.index_select(0, (self.end - own).clamp(min=0))
        return first / self.column(own), last / self.column(own)

    def geometry(self, dtype: torch.dtype) -> Tensor:
        """Describe cells without the similarity: (cells, 5, B or 1)."""
        counts = self.start.new_tensor([self.num_rows]) if self.counts is None else self.counts
        length = self.length[:, None].to(dtype).expand(-1, counts.shape[0])
        log, end = length.log(), self.end[:, None] == counts
        start = (self.start == 0)[:, None].expand_as(end)
        parts = (log, log.square(), length / counts, start.to(dtype), end.to(dtype))
        return torch.stack(parts, dim=1)

    def finish(self, cells: Tensor) -> Tensor:
        """Set invalid cells to 0, in place, and move samples to the front."""
        invalid = rearrange(~self.valid, "... cells -> cells ...").view(len(cells), 1, -1)
        return rearrange(cells.masked_fill_(invalid, 0), "cells c b -> b c cells")


def _cells_of(who: str, rows: Tensor, grid: MapGrid, num_clips: Tensor | None) -> _Cells:
    check_shape(who, "rows", rows, "B T D")
    return _Cells(who, "rows", rows.mT, grid, num_clips)


def _mean_or(outside: float, sums: Tensor, count: Tensor) -> Tensor:
    return (sums / count.clamp(min=1)).masked_fill(count <= 0, outside)
