"""Time what comes after the model, for Charades-STA's test set: merge, rank, and all metrics.

    python benchmarks/postprocess.py

Made-up maps, one for each of the 3,720 queries: of a query that may mean one of three moments, with
noise. They are ranked by NMS and by expected hits, on the paper's grid (64 clips, 16 durations, 3
scales) and on that of preset best (16, 8, 2). Beside it, a plain loop over queries does the same on
some of them, and its time is extrapolated.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tmapdiff import (
    IoUMapBuilder,
    LocalizationMetrics,
    MapGrid,
    MultiScaleMapSampler,
    RankedMoments,
    get_objective,
    rank_candidates,
    rank_candidates_by_expected_hits,
    soft_hits,
    temporal_iou,
)
from tmapdiff.provenance import describe_run

QUERIES = 3720
GRIDS = (MapGrid(64, 16, 3), MapGrid(16, 8, 2))
TOP_N, NMS_THRESHOLD = 5, 0.49
ITERATIONS, FLOOR = 20, 1e-6
TARGET = get_objective("mse-rescaled").target


@dataclass(frozen=True)
class Data:
    """Packed maps, clip lengths and annotated moments in seconds."""

    packed: Tensor
    clip_seconds: Tensor
    moments: Tensor

    def __len__(self) -> int:
        return len(self.packed)

    def first(self, count: int) -> "Data":
        """Give the data of the first queries."""
        return Data(self.packed[:count], self.clip_seconds[:count], self.moments[:count])


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


def by_nms(grid: MapGrid, data: Data) -> RankedMoments:
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(data.packed)
    options = {"top_n": TOP_N, "nms_threshold": NMS_THRESHOLD}
    return rank_candidates(candidates, scores, data.clip_seconds, **options)


def by_expected_hits(grid: MapGrid, data: Data) -> RankedMoments:
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(data.packed)
    return rank_candidates_by_expected_hits(
        candidates,
        scores,
        data.clip_seconds,
        target=TARGET,
        top_n=TOP_N,
        num_iterations=ITERATIONS,
    )


def by_nms_in_a_loop(grid: MapGrid, data: Data) -> RankedMoments:
    """Query by query: sort, then greedy NMS, as the field's code does it."""

    def rank(candidates: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        order = scores.argsort(descending=True)
        left, values = candidates[order], scores[order]
        picked: list[Tensor] = []
        best: list[Tensor] = []
        while len(left) and len(picked) < TOP_N:
            picked.append(left[0])
            best.append(values[0])
            apart = temporal_iou(left[1:], left[0]) <= NMS_THRESHOLD
            left, values = left[1:][apart], values[1:][apart]
        return torch.stack(picked), torch.stack(best)

    return _looped(grid, data, rank)


def by_expected_hits_in_a_loop(grid: MapGrid, data: Data) -> RankedMoments:
    """Query by query: deconvolve, then greedy coverage, computing the gain of every candidate."""
    candidates, _ = _candidates_by_a_mask(grid, data.first(0))
    iou = temporal_iou(candidates[:, None], candidates).float()
    response, hits = TARGET(iou), soft_hits(iou)
    seen = response.sum(dim=0)

    def rank(candidates: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        likelihood = torch.full_like(scores, 1 / len(scores))
        for _ in range(ITERATIONS):
            expected = (response @ likelihood).clamp(min=FLOOR)
            likelihood = likelihood * (response @ (scores / expected)) / seen
        likelihood /= likelihood.sum().clamp(min=1)
        covered, picked, best = torch.zeros_like(scores), [], []
        left = torch.ones_like(scores, dtype=torch.bool)
        for _ in range(TOP_N):
            gains = ((hits - covered[:, None]).clamp(min=0) * likelihood[:, None]).sum(dim=0)
            index = int(gains.masked_fill(~left, -torch.inf).argmax())
            left[index] = False
            picked.append(candidates[index])
            best.append(gains[index])
            covered = covered.maximum(hits[:, index])
        return torch.stack(picked), torch.stack(best)

    return _looped(grid, data, rank)


def _looped(
    grid: MapGrid, data: Data, rank: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> RankedMoments:
    candidates, scores = _candidates_by_a_mask(grid, data)
    answers = [rank(candidates, row) for row in scores]
    moments = torch.stack([picked for picked, _ in answers]).float()
    best = torch.stack([gains for _, gains in answers])
    seconds = moments * data.clip_seconds[:, None, None]
    return RankedMoments(seconds, best, torch.ones_like(best, dtype=torch.bool))


def _candidates_by_a_mask(grid: MapGrid, data: Data) -> tuple[Tensor, Tensor]:
    dense, mask = MultiScaleMapSampler(grid).merge(grid.unpack(data.packed))
    starts, columns = mask.nonzero(as_tuple=True)
    return torch.stack([starts, starts + columns + 1], dim=-1).double(), dense[:, mask]


WAYS = {  # batched, by a loop, and the queries that are looped over
    "NMS": (by_nms, by_nms_in_a_loop, 60),
    "expected hits": (by_expected_hits, by_expected_hits_in_a_loop, 20),
}


def metrics_of(ranked: RankedMoments, moments: Tensor) -> dict[str, float]:
    metrics = LocalizationMetrics()
    metrics.update(ranked, moments)
    return metrics.compute()


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """Median of a number of runs, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(repeats: int = 5, queries: int = QUERIES) -> list[tuple[str, float]]:
    """Seconds of all queries: a row for each grid and ranking, followed by that of its loop.

    Raises:
        RuntimeError: If loop and batch give different answers.
    """
    rows = []
    for grid in GRIDS:
        data = make_data(grid, queries)
        for name, (batched, looped, count) in WAYS.items():
            few = data.first(count)
            label = f"({grid.num_clips}, {grid.num_anchors}, {grid.num_scales}), {name}"
            if not torch.allclose(batched(grid, few).scores, looped(grid, few).scores, atol=1e-5):
                raise RuntimeError(f"{label}: the loop's answers are others")
            for row, run, part in ((label, batched, data), (f"{label}, by a loop", looped, few)):
                seconds = seconds_of(lambda: metrics_of(run(grid, part), part.moments), repeats)  # noqa: B023
                rows.append((row, seconds * queries / len(part)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()

    rows = measure(args.repeats)
    result = {"queries": QUERIES, "seconds": dict(rows), **describe_run(str(Path(__file__).parent))}
    loops = ", ".join(f"{name} {count}" for name, (_, _, count) in WAYS.items())
    print(f"{QUERIES} queries, {result['threads']} threads; loops extrapolated from: {loops}\n")
    print(f"{'grid and ranking':<36}{'seconds':>9}{'loop':>9}{'ratio':>8}")
    for (name, seconds), (_, looped) in zip(rows[::2], rows[1::2], strict=True):
        print(f"{name:<36}{seconds:>9.3f}{looped:>9.2f}{looped / seconds:>8.1f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
