"""Time what comes after the model: merge, NMS, top 5 and all metrics, for Charades-STA's test set.

    python benchmarks/postprocess.py

Random maps on the paper's grid (64 clips, 16 durations, 3 scales), one for each of the 3,720
queries, and random annotations. Beside it, a plain loop over queries does the same on some of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tmapdiff import (
    LocalizationMetrics,
    MapGrid,
    MultiScaleMapSampler,
    RankedMoments,
    rank_moments,
    temporal_iou,
)
from tmapdiff.provenance import describe_run

QUERIES = 3720
LOOPED_QUERIES = 60
TOP_N, NMS_THRESHOLD = 5, 0.49


def make_maps(grid: MapGrid, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random packed maps, clip lengths and annotated moments in seconds."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.rand(queries, grid.num_cells, generator=generator)
    clip_seconds = 0.3 + 0.4 * torch.rand(queries, generator=generator)
    ends = torch.rand(queries, 2, generator=generator).sort(dim=1).values
    moments = ends * (grid.num_clips * clip_seconds)[:, None]
    return packed, clip_seconds, moments


def postprocess(grid: MapGrid, packed: Tensor, clip_seconds: Tensor, moments: Tensor) -> dict:
    dense, mask = MultiScaleMapSampler(grid).merge(grid.unpack(packed))
    ranked = rank_moments(dense, mask, clip_seconds, top_n=TOP_N, nms_threshold=NMS_THRESHOLD)
    return metrics_of(ranked, moments)


def postprocess_by_loop(
    grid: MapGrid, packed: Tensor, clip_seconds: Tensor, moments: Tensor
) -> dict:
    """Do the same query by query: sort, then greedy NMS, as the field's code does it."""
    dense, mask = MultiScaleMapSampler(grid).merge(grid.unpack(packed))
    starts, columns = mask.nonzero(as_tuple=True)
    candidates = torch.stack([starts, starts + columns + 1], dim=-1).double()
    results = []
    for scores, seconds in zip(dense[:, mask], clip_seconds, strict=True):
        left = candidates[scores.argsort(descending=True)]
        picked: list[Tensor] = []
        while len(left) and len(picked) < TOP_N:
            picked.append(left[0])
            left = left[1:][temporal_iou(left[1:], left[0]) <= NMS_THRESHOLD]
        results.append(torch.stack(picked).float() * seconds)
    return metrics_of(torch.stack(results), moments)


def metrics_of(ranked: RankedMoments | Tensor, moments: Tensor) -> dict:
    metrics = LocalizationMetrics()
    metrics.update(ranked, moments)
    return metrics.compute()


def seconds_of(run: Callable[[], object], repeats: int) -> list[float]:
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()

    grid = MapGrid(num_clips=64, num_anchors=16, num_scales=3)
    data = make_maps(grid, QUERIES)
    part = tuple(one[:LOOPED_QUERIES] for one in data)
    if postprocess(grid, *part) != postprocess_by_loop(grid, *part):
        raise SystemExit("the batched and the looped result differ: nothing was timed")

    batched = statistics.median(seconds_of(lambda: postprocess(grid, *data), args.repeats))
    looped = statistics.median(seconds_of(lambda: postprocess_by_loop(grid, *part), args.repeats))
    looped *= QUERIES / LOOPED_QUERIES
    result = {
        "queries": QUERIES,
        "batched_seconds": batched,
        "looped_seconds_extrapolated": looped,
        "ratio": looped / batched,
        **describe_run(str(Path(__file__).parent)),
    }
    print(
        f"{QUERIES} queries, {result['threads']} threads: batched {batched:.2f} s, "
        f"query by query {looped:.2f} s (from {LOOPED_QUERIES}): {result['ratio']:.1f} times"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
