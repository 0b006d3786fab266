"""What comes after the model: merge, NMS, top 5 and metrics."""

from collections.abc import Iterator
from functools import partial

import torch
from postprocess import LOOPED_QUERIES, QUERIES, make_maps, postprocess, postprocess_by_loop
from speed_cases import Candidate, Case, Contest, TimedCase

from speed_suites.setting import Setting
from tmapdiff import MapGrid


def cases(setting: Setting) -> Iterator[Case]:
    """Measure Charades-STA's test set; the loop over queries does some of them."""
    queries = 200 if setting.quick else QUERIES
    yield TimedCase(
        "postprocess",
        "merge, NMS and metrics",
        {"queries": queries},
        torch.float32,
        partial(_contest, queries, min(LOOPED_QUERIES, queries)),
        reference="loop",
    )


def _contest(queries: int, looped: int) -> Contest:
    grid = MapGrid(num_clips=64, num_anchors=16, num_scales=3)
    maps = make_maps(grid, queries)
    part = tuple(one[:looped] for one in maps)
    return Contest(
        [
            Candidate(
                "loop", lambda given: postprocess_by_loop(grid, *given), [part], items=looped
            ),
            Candidate("auto", lambda given: postprocess(grid, *given), [maps], items=queries),
        ]
    )
