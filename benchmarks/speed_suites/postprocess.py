"""What comes after the model: merge, ranking, top 5 and metrics."""

from collections.abc import Iterator
from functools import partial

import torch
from postprocess import GRIDS, QUERIES, WAYS, make_data, metrics_of
from speed_cases import Candidate, Case, Contest, TimedCase

from speed_suites.setting import Setting
from tmapdiff import MapGrid


def cases(setting: Setting) -> Iterator[Case]:
    """Measure Charades-STA's test set; the loops over queries do some of them."""
    queries = 200 if setting.quick else QUERIES
    for grid in GRIDS[-1:] if setting.quick else GRIDS:
        for way in WAYS:
            shape = {"queries": queries, "clips": grid.num_clips, "anchors": grid.num_anchors}
            yield TimedCase(
                "postprocess",
                f"merge, {way} and metrics",
                shape,
                torch.float32,
                partial(_contest, grid, way, queries),
                reference="loop",
            )


def _contest(grid: MapGrid, way: str, queries: int) -> Contest:
    batched, looped, count = WAYS[way]
    data = make_data(grid, queries)
    few = data.first(min(count, queries))
    return Contest(
        [
            Candidate(
                "loop",
                lambda given: metrics_of(looped(grid, given), given.moments),
                [few],
                items=len(few),
            ),
            Candidate(
                "auto",
                lambda given: metrics_of(batched(grid, given), given.moments),
                [data],
                items=len(data),
            ),
        ]
    )
