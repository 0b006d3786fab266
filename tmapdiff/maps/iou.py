"""IoU maps of annotated moments: what the diffusion model learns to generate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tmapdiff._core.checks import check_floating, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.grid import MapGrid
from tmapdiff.maps.overlap import temporal_iou

Moments: TypeAlias = Tensor | np.ndarray | Sequence[Any]
PerSample: TypeAlias = Tensor | np.ndarray | Sequence[float] | float | None


@dataclass(eq=False)
class IoUMapBuilder:
    """Builds the IoU maps of annotated moments: what the diffusion model denoises.

    Each cell holds the highest IoU of its candidate moment with any annotated moment, or 0 if there
    is none. Invalid cells, whose candidate ends after the video, are 0. Computed in closed form, on
    the moments' device and in their dtype; lists and integers become torch's default dtype.

    Every method takes `moments`, the start and end of the annotated moments in seconds,
    `clip_seconds`, the seconds per clip (without it, moments are in clips), and `num_moments`, how
    many of the M moments of each sample count, 0 to M (defaults to all). Every method raises the
    errors of the call.

    Args:
        grid: The candidate moments.
        validate: Check the values of the moments, which synchronizes with the device once. Turn it
            off for moments that were checked before.

    Shape:
        - moments: (B, M, 2), (B, 2), or (2,) for a single moment
        - clip_seconds, num_moments: (B,), or one number for all samples

    Source: Zhang et al., arXiv 2401.08232, Eq. 1.

    Example:
        >>> build = IoUMapBuilder(MapGrid(num_clips=2, num_anchors=2, num_scales=1))
        >>> build([0, 5], clip_seconds=5)[0]
        tensor([[[1.0000, 0.5000],
                 [0.0000, 0.0000]]])
    """

    grid: MapGrid
    validate: bool = field(default=True, kw_only=True)

    def __call__(
        self, moments: Moments, clip_seconds: PerSample = None, num_moments: PerSample = None
    ) -> list[Tensor]:
        """Build one IoU map per scale.

        Shape:
            - returns: K tensors (B, N_k, A), in [0, 1]

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If `moments` are not numbers, `clip_seconds` is not positive,
                `num_moments` is not in 0 to M, or a moment is not finite, starts before 0, does
                not end after its start, or lies wholly outside the video.
        """
        return self.grid.unpack(self.packed(moments, clip_seconds, num_moments))

    def packed(
        self, moments: Moments, clip_seconds: PerSample = None, num_moments: PerSample = None
    ) -> Tensor:
        """Build the IoU maps of all scales as one packed tensor.

        Shape:
            - returns: (B, cells), in [0, 1]
        """
        moments, clip_seconds, counted = self._checked(moments, clip_seconds, num_moments)
        cells = self.grid.packed_moments(moments.device)
        candidates = cells * clip_seconds[:, None, None]
        best = candidates.new_zeros(candidates.shape[:-1])
        # One annotated moment at a time: M is small, and this holds one map instead of M.
        for index in range(moments.shape[1]):
            iou = temporal_iou(candidates, moments[:, index, None])
            best = torch.maximum(best, iou.where(counted[:, index, None], 0))
        return (best * self.grid.packed_mask(moments.device)).to(moments.dtype)

    def check(
        self, moments: Moments, clip_seconds: PerSample = None, num_moments: PerSample = None
    ) -> None:
        """Check the moments as the call does with `validate`."""
        IoUMapBuilder(self.grid)._checked(moments, clip_seconds, num_moments)

    def _checked(
        self, moments: Moments, clip_seconds: PerSample, num_moments: PerSample
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return moments (B, M, 2), clip_seconds (B,), and which moments count (B, M)."""
        who = type(self).__name__
        every = _as_tensor(moments)
        if isinstance(every, Tensor) and every.dim() in (1, 2):
            every = (every[None] if every.dim() == 1 else every)[:, None]
        scored = isinstance(every, Tensor) and every.shape[-1:] == (3,)
        hint = "Pass start and end only; keep scores in a separate tensor." if scored else ""
        sizes = check_shape(who, "moments", every, "B M 2", hint=hint)
        if every.dtype != torch.bool and not every.is_floating_point():
            every = every.to(torch.get_default_dtype())
        check_floating(who, "moments", every)

        def per_sample(
            name: str, values: PerSample, default: int, dtype: torch.dtype | None = None
        ) -> Tensor:
            if values is None:
                return torch.full((sizes["B"],), default, dtype=dtype, device=every.device)
            found = _as_tensor(values, dtype=dtype, device=every.device)
            if isinstance(found, Tensor) and not found.dim():
                found = found.expand(sizes["B"])
            check_shape(who, name, found, "B", sizes)
            return found

        # Ends of cells in half precision would be off by seconds.
        wide = torch.promote_types(every.dtype, torch.float32)
        seconds = per_sample("clip_seconds", clip_seconds, 1, wide).to(wide)
        counts = per_sample("num_moments", num_moments, sizes["M"])
        counted = torch.arange(sizes["M"], device=every.device) < counts[:, None]
        if self.validate:
            unit = "clips" if clip_seconds is None else "s"
            self._check_values(every, seconds, counts, counted, unit)
        return every, seconds, counted

    def _check_values(
        self,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor,
        counted: Tensor,
        unit: str,
    ) -> None:
        lasts = (clip_seconds > 0) & clip_seconds.isfinite()
        start, end = moments.unbind(-1)
        video_seconds = self.grid.num_clips * clip_seconds[:, None]
        fine = moments.isfinite().all(-1) & (start >= 0) & (end > start) & (start < video_seconds)
        fine |= ~counted
        most = moments.shape[1]
        some = (num_moments >= 0) & (num_moments <= most)
        if bool(lasts.all() & fine.all() & some.all()):  # together: this synchronizes
            return

        who = type(self).__name__
        if not bool(lasts.all()):
            (row,) = _first(~lasts)
            got = f"{clip_seconds[row]:g}"
            raise ArgumentError(message(who, f"clip_seconds[{row}] > 0 and finite", got))
        if not bool(some.all()):
            (row,) = _first(~some)
            got = f"{num_moments[row]}"
            raise ArgumentError(message(who, f"num_moments[{row}] in 0 to {most}", got))
        row, index = _first(~fine)
        length = f"{video_seconds[row, 0].item():g} {unit}, the video's length"
        got_start, got_end = moments[row, index].tolist()
        got = f"start {got_start:g}, end {got_end:g} in row {row} of moments"
        raise ArgumentError(message(who, f"0 <= start < end and start < {length}", got))


def _as_tensor(values: Any, **options: Any) -> Any:
    """Convert numbers to a tensor; return anything else as is, for `check_shape` to reject."""
    if isinstance(values, Tensor | str | bool):
        return values
    try:
        return torch.as_tensor(values, **options)
    except (TypeError, ValueError, RuntimeError):
        return values


def _first(wrong: Tensor) -> list[int]:
    return wrong.nonzero()[0].tolist()
