"""IoU maps of annotated moments: what the diffusion model learns to generate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmapdiff._core.checks import check_floating, check_shape
from tmapdiff.errors import ArgumentError
from tmapdiff.maps.grid import MapGrid
from tmapdiff.maps.overlap import temporal_iou


class IoUMapBuilder:
    """Makes the IoU maps of annotated moments: what the diffusion model denoises.

    Each cell holds the IoU of its candidate moment with the annotated one; with several annotated
    moments, the highest; with none, as in a video without the event, 0. Invalid cells are 0. Closed
    form, on the moments' device and in their dtype.

    Args:
        grid: The candidate moments.
        validate: Check the values of the moments. The check waits for the device, once; turn it off
            for moments that were checked before.

    Source: Zhang et al., arXiv 2401.08232, Eq. 1.

    Example:
        >>> build = IoUMapBuilder(MapGrid(num_clips=2, num_anchors=2, num_scales=1))
        >>> build(torch.tensor([[0.0, 5.0]]), clip_seconds=torch.tensor([5.0]))[0]
        tensor([[[1.0000, 0.5000],
                 [0.0000, 0.0000]]])
    """

    def __init__(self, grid: MapGrid, *, validate: bool = True) -> None:
        self.grid = grid
        self.validate = validate

    def __call__(
        self, moments: Tensor, clip_seconds: Tensor | None = None, num_moments: Tensor | None = None
    ) -> list[Tensor]:
        """Build one IoU map a scale.

        Args:
            moments: Start and end of the annotated moments, in seconds.
            clip_seconds: Seconds a clip lasts, for each sample. If None, moments are in clips.
            num_moments: How many of the M moments of each sample count, 0 to M. All, if None.

        Shape:
            - moments: (B, 2) or (B, M, 2)
            - clip_seconds: (B,)
            - num_moments: (B,)
            - returns: K tensors (B, N_k, A), in [0, 1]

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If `moments` is not floating, `clip_seconds` is not positive,
                `num_moments` is not in 0 to M, or a moment is not finite, starts before 0, does
                not end after its start, or lies wholly outside the video.
        """
        return self.grid.unpack(self.packed(moments, clip_seconds, num_moments))

    def packed(
        self, moments: Tensor, clip_seconds: Tensor | None = None, num_moments: Tensor | None = None
    ) -> Tensor:
        """Build the IoU maps of all scales as one packed tensor.

        Args:
            moments: Start and end of the annotated moments, in seconds.
            clip_seconds: Seconds a clip lasts, for each sample. If None, moments are in clips.
            num_moments: How many of the M moments of each sample count, 0 to M. All, if None.

        Shape:
            - moments: (B, 2) or (B, M, 2)
            - clip_seconds: (B,)
            - num_moments: (B,)
            - returns: (B, cells), in [0, 1]

        Raises:
            ShapeError, ArgumentError: As the call.
        """
        moments, clip_seconds, counted = self._checked(moments, clip_seconds, num_moments)
        cells = self.grid.packed_moments(moments.device)
        iou = self._iou(cells, moments, clip_seconds, counted)
        return iou * self.grid.packed_mask(moments.device)

    def check(
        self, moments: Tensor, clip_seconds: Tensor | None = None, num_moments: Tensor | None = None
    ) -> None:
        """Check `moments`, `clip_seconds` and `num_moments` as the call does with `validate`.

        Shape:
            - moments: (B, 2) or (B, M, 2)
            - clip_seconds: (B,)
            - num_moments: (B,)

        Raises:
            ShapeError, ArgumentError: As the call.
        """
        IoUMapBuilder(self.grid)._checked(moments, clip_seconds, num_moments)

    def dense(
        self, moments: Tensor, clip_seconds: Tensor | None = None, num_moments: Tensor | None = None
    ) -> Tensor:
        """Build the IoU of every candidate `[start clip, duration in clips - 1]`, of no scale.

        Takes memory quadratic in the clips.

        Args:
            moments: Start and end of the annotated moments, in seconds.
            clip_seconds: Seconds a clip lasts, for each sample. If None, moments are in clips.
            num_moments: How many of the M moments of each sample count, 0 to M. All, if None.

        Shape:
            - moments: (B, 2) or (B, M, 2)
            - clip_seconds: (B,)
            - num_moments: (B,)
            - returns: (B, N, N), in [0, 1], 0 where the candidate ends outside the video

        Raises:
            ShapeError, ArgumentError: As the call.
        """
        moments, clip_seconds, counted = self._checked(moments, clip_seconds, num_moments)
        whole = MapGrid(self.grid.num_clips, self.grid.num_clips, 1)
        iou = self._iou(whole.moments(0, moments.device), moments, clip_seconds, counted)
        return iou * whole.mask(0, moments.device)

    def _iou(
        self, cells: Tensor, moments: Tensor, clip_seconds: Tensor, counted: Tensor | None
    ) -> Tensor:
        # (B, *cells, 2) seconds against (B, M, 2), one annotated moment at a time: M is small, and
        # this holds one map instead of M.
        ones = (1,) * (cells.dim() - 1)
        candidates = cells * clip_seconds.to(moments.dtype).reshape(-1, *ones, 1)
        best = None
        for index in range(moments.shape[1]):
            truth = moments[:, index].reshape(-1, *ones, 2)
            iou = temporal_iou(candidates, truth)
            if counted is not None:
                iou = iou.where(counted[:, index].reshape(-1, *ones), 0)
            best = iou if best is None else torch.maximum(best, iou)
        return candidates.new_zeros(candidates.shape[:-1]) if best is None else best

    def _checked(
        self, moments: Tensor, clip_seconds: Tensor | None, num_moments: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        who = type(self).__name__
        if isinstance(moments, Tensor) and moments.dim() == 2:
            moments = moments[:, None]
        hint = "Pass start and end only: scores belong in a tensor of their own."
        sizes = check_shape(who, "moments", moments, "B M 2", hint=hint)
        check_floating(who, "moments", moments)
        unit = "clips" if clip_seconds is None else "s"
        if clip_seconds is None:
            clip_seconds = moments.new_ones(sizes["B"])
        check_shape(who, "clip_seconds", clip_seconds, "B", sizes)
        counted = None
        if num_moments is not None:
            check_shape(who, "num_moments", num_moments, "B", sizes)
            counted = torch.arange(sizes["M"], device=moments.device) < num_moments[:, None]
        if self.validate:
            self._check_values(moments, clip_seconds, num_moments, counted, unit)
        return moments, clip_seconds, counted

    def _check_values(
        self,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor | None,
        counted: Tensor | None,
        unit: str,
    ) -> None:
        lasts = (clip_seconds > 0) & clip_seconds.isfinite()
        start, end = moments.unbind(-1)
        video_seconds = self.grid.num_clips * clip_seconds.to(moments.dtype)[:, None]
        fine = moments.isfinite().all(-1) & (start >= 0) & (end > start) & (start < video_seconds)
        if counted is not None:
            fine = fine | ~counted
        right = lasts.all() & fine.all()
        most = moments.shape[1]
        if num_moments is not None:
            some = (num_moments >= 0) & (num_moments <= most)
            right = right & some.all()
        if bool(right):  # of all values at once: this waits for the device
            return

        who = type(self).__name__
        if not bool(lasts.all()):
            (row,) = _first(~lasts)
            raise ArgumentError(
                f"{who}: expected clip_seconds[{row}] > 0 and finite, got {clip_seconds[row]:g}."
            )
        if num_moments is not None and not bool(some.all()):
            (row,) = _first(~some)
            raise ArgumentError(
                f"{who}: expected num_moments[{row}] in 0 to {most}, got {num_moments[row]}."
            )
        row, index = _first(~fine)
        got_start, got_end = moments[row, index].tolist()
        length = video_seconds[row, 0].item()
        raise ArgumentError(
            f"{who}: expected 0 <= start < end and start < {length:g} {unit}, the video's length, "
            f"got start {got_start:g}, end {got_end:g} in row {row} of moments."
        )


def _first(wrong: Tensor) -> Sequence[int]:
    return [int(index) for index in wrong.nonzero()[0]]
