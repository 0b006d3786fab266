"""Postprocessing of Charades-STA's test set: merge, ranking, top 5 and all metrics.

There is a synthetic map per query, which has three possible moments and noise. The library is
compared with a plain loop over some of the queries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from speed_cases import Candidate, Case, Contest, TimedCase
from torch import Tensor

from speed_suites.setting import Setting
from tmapdiff import (
    IoUMapBuilder,
    LocalizationMetrics,
    MapGrid,
    MultiScaleMapSampler,
    RankedMoments,
    get_objective,
    rank_candidates,
    temporal_iou,
)

QUERIES, LOOPED = 3720, 60
GRIDS = (MapGrid(64, 16, 3), MapGrid(16, 8, 2))
TOP_N, NMS_THRESHOLD = 5, 0.49
TARGET = get_objective("mse-rescaled").target


@dataclass(frozen=True)
class Data:
    """Packed maps, clip lengths and annotated moments in seconds."""

    packed: Tensor
    clip_seconds: Tensor
    moments: Tensor

    def __len__(self) -> int:
        return len(self.packed)


def cases(setting: Setting) -> Iterator[Case]:
    """Measure each grid; the loop covers some of the queries."""
    queries = 200 if setting.quick else QUERIES
    for grid in GRIDS[-1:] if setting.quick else GRIDS:
        yield TimedCase(
            "postprocess",
            "merge, NMS and metrics",
            {"queries": queries, "clips": grid.num_clips, "anchors": grid.num_anchors},
            torch.float32,
            partial(_contest, grid, queries),
            reference="loop",
        )


def _contest(grid: MapGrid, queries: int) -> Contest:
    data, few = make_data(grid, queries), make_data(grid, LOOPED)
    if not torch.allclose(by_nms(grid, few).scores, by_nms_in_a_loop(grid, few).scores, atol=1e-5):
        raise RuntimeError("the loop's answers differ")
    return Contest(
        [
            Candidate("loop", partial(metrics_of, by_nms_in_a_loop, grid), [few], items=len(few)),
            Candidate("auto", partial(metrics_of, by_nms, grid), [data], items=len(data)),
        ]
    )


def make_data(grid: MapGrid, queries: int) -> Data:
    random = torch.Generator().manual_seed(0)
    clip_seconds = 0.3 + 0.4 * torch.rand(queries, generator=random)
    seconds = (grid.num_clips * clip_seconds)[:, None]
    chances = torch.rand(queries, 3, generator=random).softmax(dim=1)
    build = IoUMapBuilder(grid)
    packed = 0.05 * torch.rand(queries, grid.num_cells, generator=random)
    for index in range(3):
        start, length = torch.rand(2, queries, 1, generator=random)
        start = 0.8 * start
        moments = seconds * torch.cat([start, start + 0.1 + (0.9 - start) * length], dim=1)
        packed += chances[:, index, None] * TARGET(build.packed(moments, clip_seconds))
    return Data(packed, clip_seconds, moments)


def metrics_of(
    rank: Callable[[MapGrid, Data], RankedMoments], grid: MapGrid, data: Data
) -> dict[str, float]:
    metrics = LocalizationMetrics()
    metrics.update(rank(grid, data), data.moments)
    return metrics.compute()


def by_nms(grid: MapGrid, data: Data) -> RankedMoments:
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(data.packed)
    options = {"top_n": TOP_N, "nms_threshold": NMS_THRESHOLD}
    return rank_candidates(candidates, scores, data.clip_seconds, **options)


def by_nms_in_a_loop(grid: MapGrid, data: Data) -> RankedMoments:
    """Rank query by query: sort, then greedy NMS, as is usual in the field."""
    dense, mask = MultiScaleMapSampler(grid).merge(grid.unpack(data.packed))
    starts, columns = mask.nonzero(as_tuple=True)
    candidates = torch.stack([starts, starts + columns + 1], dim=-1).double()
    moments, best = [], []
    for scores in dense[:, mask]:
        order = scores.argsort(descending=True)
        left, values = candidates[order], scores[order]
        for _ in range(TOP_N):
            moments.append(left[0])
            best.append(values[0])
            apart = temporal_iou(left[1:], left[0]) <= NMS_THRESHOLD
            left, values = left[1:][apart], values[1:][apart]
    clips = rearrange(torch.stack(moments), "(b n) end -> b n end", n=TOP_N).float()
    scores = rearrange(torch.stack(best), "(b n) -> b n", n=TOP_N)
    seconds = clips * data.clip_seconds[:, None, None]
    return RankedMoments(seconds, scores, torch.ones_like(scores, dtype=torch.bool))
