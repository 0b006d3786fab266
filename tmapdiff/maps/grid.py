"""The geometry of multi-scale 2D temporal maps: cells, seconds, masks, packing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from tmapdiff._core.checks import check_int, check_length, check_range, check_shape, message
from tmapdiff._core.limits import LIMIT_HINT, max_item_bytes
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.maps.overlap import temporal_iou

_MOST_SCALES = 32  # a clip of the last scale is 2**31 clips of the first
_BYTES_PER_CELL = 16  # of the largest table, with two 8-byte numbers per cell


@dataclass(frozen=True)
class MapGrid:
    """All candidate moments of a video, on several scales.

    A video is divided into `num_clips` equal clips. Cell `(k, i, j)` is the candidate moment of
    scale `k` that starts at clip `i * 2**k` and lasts `(j + 1) * 2**k` clips: rows of a map are
    starts, columns are durations. A cell is valid when its moment ends inside the video.

    When videos are shorter than the grid, pass `num_clips`, (B,), the clips of each, integers:
    results then have a batch axis. `device` is where results go; defaults to the device of
    `num_clips`, or the CPU.
    Methods raise ArgumentError for a `scale` that does not exist, and the errors of
    `check_num_clips`.

    Args:
        num_clips: Clips of the finest scale (the paper's N), divisible by `2**(num_scales - 1)`.
        num_anchors: Durations per scale (the paper's A), at most the clips of the coarsest scale.
        num_scales: Scales (the paper's K).

    Raises:
        ArgumentError: If a size is not a positive integer.
        ConfigError: If `num_clips` does not divide, the longest duration exceeds the video, or the
            tables of the cells take more memory than an item may (`TMAPDIFF_MAX_ITEM_BYTES`).

    Source: Zhang et al., Multi-Scale 2D Temporal Adjacent Networks, arXiv 2012.02646, section 3.3.

    Example:
        >>> grid = MapGrid()
        >>> grid.shapes
        ((64, 16), (32, 16), (16, 16))
        >>> grid.num_cells
        1792
    """

    num_clips: int = 64
    num_anchors: int = 16
    num_scales: int = 3

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_anchors", "num_scales"):
            check_int("MapGrid", name, getattr(self, name), at_least=1)
        # Before computing a power of it: the number may come from an untrusted file.
        if self.num_scales > _MOST_SCALES:
            raise ConfigError(message("MapGrid", f"num_scales <= {_MOST_SCALES}", self.num_scales))
        stride = self.stride(self.num_scales - 1)
        if self.num_clips % stride:
            below = self.num_clips - self.num_clips % stride
            nearest = below if below and self.num_clips - below <= stride / 2 else below + stride
            expected = f"num_clips divisible by 2**(num_scales - 1) = {stride}"
            hint = f"The nearest valid value is {nearest}."
            raise ConfigError(message("MapGrid", expected, self.num_clips, hint))
        coarsest = self.num_clips // stride
        if self.num_anchors > coarsest:
            expected = f"num_anchors <= {coarsest}, the clips of the coarsest scale"
            hint = "Longer durations could never end inside the video."
            raise ConfigError(message("MapGrid", expected, self.num_anchors, hint))
        if self.num_cells * _BYTES_PER_CELL > max_item_bytes():
            expected = f"at most {max_item_bytes() // _BYTES_PER_CELL:,} cells"
            raise ConfigError(message("MapGrid", expected, f"{self.num_cells:,}", LIMIT_HINT))

    def resized(self, num_clips: int) -> "MapGrid":
        """Return a grid with the same durations and scales over `num_clips` clips."""
        return self if num_clips == self.num_clips else replace(self, num_clips=num_clips)

    # Sizes

    def stride(self, scale: int) -> int:
        """Return the clips between neighboring starts, and between durations, of `scale`."""
        return 2**scale

    def shape(self, scale: int) -> tuple[int, int]:
        """Return the rows and columns `(N_k, A)` of the map of `scale`."""
        if not 0 <= scale < self.num_scales:
            raise ArgumentError(message("MapGrid", f"scale in 0 to {self.num_scales - 1}", scale))
        return self.num_clips // self.stride(scale), self.num_anchors

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the maps of all scales."""
        return tuple(self.shape(scale) for scale in range(self.num_scales))

    @property
    def cells_per_scale(self) -> tuple[int, ...]:
        """Cells of each scale's map, invalid ones included."""
        return tuple(rows * columns for rows, columns in self.shapes)

    @property
    def num_cells(self) -> int:
        """Cells of all scales, invalid ones included: the width of packed maps."""
        return sum(self.cells_per_scale)

    # Cells

    def check_num_clips(self, num_clips: Tensor | None, *, wait: bool = False) -> None:
        """Check that each video of a batch has at least one clip and no more than the grid.

        Args:
            num_clips: Clips of each video. Defaults to the grid's.
            wait: Whether to check values on devices other than the CPU, too, which synchronizes
                with the device. Compiled code never checks them.

        Shape:
            - num_clips: (B,), integer

        Raises:
            ShapeError: If `num_clips` is not (B,).
            ArgumentError: If it does not hold integers, or one is outside 1 to the grid's clips.
        """
        if num_clips is None:
            return
        check_shape("MapGrid.mask", "num_clips", num_clips, "B")
        if num_clips.is_floating_point() or num_clips.dtype == torch.bool:
            raise ArgumentError(message("MapGrid", "integer num_clips", num_clips.dtype))
        readable = num_clips.device.type == "cpu" or (wait and num_clips.device.type != "meta")
        if not readable or torch.compiler.is_compiling():
            return
        wrong = (num_clips < 1) | (num_clips.long() > self.num_clips)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            expected = f"num_clips[{row}] in 1 to {self.num_clips}"
            raise ArgumentError(message("MapGrid", expected, int(num_clips[row])))

    def mask(
        self,
        scale: int,
        device: torch.device | str | None = None,
        num_clips: Tensor | None = None,
    ) -> Tensor:
        """Return which cells of `scale` end inside the video, on `device`.

        Shape:
            - returns: (N_k, A), bool; (B, N_k, A) with `num_clips`
        """
        self.check_num_clips(num_clips)
        rows, columns = self.shape(scale)
        if num_clips is not None and device is None:
            device = num_clips.device
        starts = torch.arange(rows, device=device)[:, None]
        ends = starts + torch.arange(1, columns + 1, device=device)
        if num_clips is None:
            return ends <= rows
        # Whole clips of this scale only: cells that reach into a partly filled clip are invalid.
        return ends <= rearrange(num_clips.to(ends.device) // self.stride(scale), "b -> b 1 1")

    def packed_mask(
        self, device: torch.device | str | None = None, num_clips: Tensor | None = None
    ) -> Tensor:
        """Return which cells of packed maps are valid, on `device`.

        Shape:
            - returns: (cells,), bool; (B, cells) with `num_clips`
        """
        masks = [self.mask(scale, device, num_clips) for scale in range(self.num_scales)]
        return torch.cat([mask.flatten(-2) for mask in masks], dim=-1)

    def dense_mask(
        self, device: torch.device | str | None = None, num_clips: Tensor | None = None
    ) -> Tensor:
        """Return which cells of a dense map are on at least one scale, on `device`.

        Cells are `[start clip, duration in clips - 1]`.

        Shape:
            - returns: (N, N), bool; (B, N, N) with `num_clips`
        """
        masks = [self.mask(scale, device, num_clips) for scale in range(self.num_scales)]
        held = masks[0].new_zeros(*masks[0].shape[:-2], self.num_clips, self.num_clips)
        for scale, mask in enumerate(masks):
            self.dense_cells(held, scale)[:] |= mask
        return held

    def dense_cells(self, dense: Tensor, scale: int) -> Tensor:
        """Return a view of the cells of a dense map `(..., N, N)` that are cells of `scale`.

        Row `i`, column `j` of the view is `dense[..., i * 2**scale, (j + 1) * 2**scale - 1]`.

        Shape:
            - dense: (..., N, N)
            - returns: (..., N_k, A), a view
        """
        stride = self.stride(scale)
        return dense[..., ::stride, stride - 1 : stride * self.num_anchors : stride]

    def moments(self, scale: int, device: torch.device | str | None = None) -> Tensor:
        """Return the start and end of each cell of `scale`, in clips, on `device`.

        Shape:
            - returns: (N_k, A, 2), int64; ends of invalid cells lie beyond `num_clips`
        """
        rows, columns = self.shape(scale)
        starts = torch.arange(rows, device=device)[:, None].expand(rows, columns)
        durations = torch.arange(1, columns + 1, device=device)
        return torch.stack([starts, starts + durations], dim=-1) * self.stride(scale)

    def packed_moments(self, device: torch.device | str | None = None) -> Tensor:
        """Return the start and end of each cell of packed maps, in clips, on `device`.

        Shape:
            - returns: (cells, 2), int64
        """
        return torch.cat(
            [self.moments(scale, device).flatten(0, 1) for scale in range(self.num_scales)]
        )

    def valid_cells(self, scales: Sequence[int] | None = None) -> list[int]:
        """Return the positions of the valid cells in packed maps, in ascending order.

        Args:
            scales: The scales to include, in ascending order. Defaults to all.
        """
        # Without tensors: torch's compiler would not know their values.
        cells: list[int] = []
        for scale in range(self.num_scales) if scales is None else scales:
            rows, columns = self.shape(scale)
            first = sum(self.cells_per_scale[:scale])
            for start in range(rows):
                row = first + start * columns
                cells.extend(range(row, row + min(columns, rows - start)))
        return cells

    # Packing

    def pack(self, maps: Sequence[Tensor]) -> Tensor:
        """Flatten the maps of all scales into one tensor.

        Args:
            maps: One map per scale, finest first.

        Shape:
            - maps: K tensors (B, N_k, A)
            - returns: (B, cells)

        Raises:
            ShapeError: If there are not `num_scales` maps, or one has another shape.
        """
        check_length("MapGrid.pack", "maps", maps, self.num_scales)
        sizes: dict[str, int] = {}
        for scale, (rows, columns) in enumerate(self.shapes):
            sizes = check_shape(
                "MapGrid.pack", f"maps[{scale}]", maps[scale], f"B {rows} {columns}", sizes
            )
        return torch.cat([rearrange(one, "b rows columns -> b (rows columns)") for one in maps], 1)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """View packed maps as one map per scale.

        Shape:
            - packed: (B, cells)
            - returns: K views (B, N_k, A)

        Raises:
            ShapeError: If `packed` is not (B, cells).
        """
        check_shape("MapGrid.unpack", "packed", packed, f"B {self.num_cells}")
        return [
            part.unflatten(1, shape)
            for part, shape in zip(packed.split(self.cells_per_scale, 1), self.shapes, strict=True)
        ]

    # Coverage

    def best_iou(self, moment: Sequence[float], clip_seconds: float = 1.0) -> float:
        """Return the highest IoU of a moment with any cell: an upper bound for any model.

        The grid has gaps, as long durations exist on coarse scales only.

        Args:
            moment: Start and end in seconds (in clips, when `clip_seconds` is 1).
            clip_seconds: Seconds a clip lasts.

        Raises:
            ShapeError: If the moment is not two numbers.
            ArgumentError: If it is not finite with end > start, or `clip_seconds` is not positive.
        """
        who = "MapGrid.best_iou"
        check_range(who, "clip_seconds", clip_seconds, 0, open_low=True)
        truth = torch.as_tensor(moment, dtype=torch.float64)
        check_shape(who, "moment", truth, "2")
        if not (bool(truth.isfinite().all()) and bool(truth[0] < truth[1])):
            raise ArgumentError(message(who, "a finite moment with end > start", moment))
        candidates = self.packed_moments()[self.packed_mask()].double() * clip_seconds
        return float(temporal_iou(candidates, truth).max())
