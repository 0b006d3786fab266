"""Brute-force references, written as the definitions read: loops, no tensors where possible."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tmapdiff.maps import MapGrid, deconvolve_map

if TYPE_CHECKING:
    from tmapdiff import MomentLocalizer


def interval_iou(first: Sequence[float], second: Sequence[float]) -> float:
    overlap = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    union = (first[1] - first[0]) + (second[1] - second[0]) - overlap
    return overlap / union if union > 0 else 0.0


def cells(num_clips: int, num_anchors: int, num_scales: int) -> list[tuple[int, int, int, bool]]:
    """`(scale, row, column, valid)` of every cell, in packed order."""
    found = []
    for scale in range(num_scales):
        rows = num_clips // 2**scale
        for row in range(rows):
            for column in range(num_anchors):
                found.append((scale, row, column, row + column + 1 <= rows))
    return found


def cell_moment(scale: int, row: int, column: int) -> tuple[int, int]:
    """Start and end in clips."""
    return row * 2**scale, (row + column + 1) * 2**scale


def candidates_of(grid: MapGrid) -> Tensor:
    """Start and end of the distinct moments of a grid, in clips, (M, 2)."""
    starts, columns = grid.dense_mask().nonzero(as_tuple=True)
    return torch.stack([starts, starts + columns + 1], dim=-1)


def looped_saliency(
    likelihood: Sequence[float], candidates: Sequence[Sequence[int]], num_clips: int
) -> list[float]:
    """Sum over the candidates that hold a clip."""
    pairs = list(zip(likelihood, candidates, strict=True))
    return [
        math.fsum(share for share, (start, end) in pairs if start <= clip < end)
        for clip in range(num_clips)
    ]


def dense_saliency(dense: Tensor, target: Callable[[Tensor], Tensor]) -> list[float]:
    """Saliency of the clips of one dense map, (N, N), not finite where no candidate is."""
    cells = dense.isfinite().nonzero().tolist()
    moments = [(start, start + column + 1) for start, column in cells]
    overlap = [[interval_iou(one, other) for other in moments] for one in moments]
    response = target(torch.tensor(overlap, dtype=torch.float64))
    scores = torch.stack([dense[start, column] for start, column in cells]).double()
    return looped_saliency(deconvolve_map(scores[None], response)[0].tolist(), moments, len(dense))


def looped_pieces(
    saliency: Sequence[float], clip_seconds: float, duration: float, seconds: float
) -> list[float]:
    """Mean over each piece, of a video cut wherever a clip or a piece ends."""
    pieces = []
    for piece in range(max(int(duration / seconds), 1)):
        first, last = piece * seconds, min((piece + 1) * seconds, duration)
        total = 0.0
        for clip, value in enumerate(saliency):
            shared = min(last, (clip + 1) * clip_seconds) - max(first, clip * clip_seconds)
            total += value * max(shared, 0)
        pieces.append(total / (last - first))
    return pieces


def greedy_nms(
    moments: Sequence[Sequence[float]], scores: Sequence[float], threshold: float, top_n: int
) -> list[int]:
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    kept: list[int] = []
    for index in order:
        if scores[index] == -float("inf") or len(kept) == top_n:
            break
        if all(interval_iou(moments[index], moments[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


@torch.no_grad()
def sampled_by_calls(
    model: "MomentLocalizer", features: Sequence[Tensor], noise: Tensor, steps: int
) -> Tensor:
    """Maps that a localizer denoises, by a loop over calls of its decoder."""
    scheduler = type(model.scheduler).from_config(model.scheduler.config)
    scheduler.set_timesteps(steps)
    noisy = noise
    for timestep in scheduler.timesteps:
        scores = model.predict_scores(noisy, timestep.expand(len(noise)), features)
        clean = scheduler.to_signal(model.objective.activation(scores))
        noisy = scheduler.step(clean, timestep, noisy).prev_sample
    return scheduler.to_iou(noisy).masked_fill(~model.grid.packed_mask(), 0)


class OracleDecoder(nn.Module):
    """A decoder that knows the answer, and remembers the timesteps that it was asked at."""

    def __init__(self, grid: MapGrid, scores: Tensor) -> None:
        super().__init__()
        self.grid = grid
        self.scores = scores
        self.timesteps: list[int] = []
        self.dtype = scores.dtype

    def prepare(
        self, features: Sequence[Tensor], timesteps: Tensor, num_clips: Tensor | None = None
    ) -> SimpleNamespace:
        def denoise(noisy: Tensor, step: int) -> Tensor:
            if noisy.shape != self.scores.shape:
                raise AssertionError(f"noisy maps of shape {tuple(noisy.shape)}")
            self.timesteps.append(int(timesteps[step]))
            return self.scores

        return SimpleNamespace(grid=self.grid, batch=len(features[0]), denoise=denoise)

    def forward(
        self,
        noisy: Tensor,
        timestep: Tensor,
        features: Sequence[Tensor],
        num_clips: Tensor | None = None,
    ) -> Tensor:
        if len(timestep) != len(noisy):
            raise AssertionError(f"{len(timestep)} timesteps of {len(noisy)} samples")
        return self.prepare(features, timestep[:1]).denoise(noisy, 0)
