"""DiDeMo: moments of whole segments of 5 s, marked by several annotators."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tmapdiff._core.checks import check_choice, message, shown
from tmapdiff.data._reading import (
    AnnotationCollector,
    field,
    number,
    pairs,
    query_id,
    read_json,
    sentence,
)
from tmapdiff.data.annotations import AnnotationSet
from tmapdiff.errors import AnnotationError

SEGMENT_SECONDS = 5.0


def load_didemo(
    root: str | os.PathLike[str], split: Literal["train", "val", "test"]
) -> AnnotationSet:
    """Load the sentences of DiDeMo, with the moments of all annotators, even equal ones.

    A segment counts as 5 s, so videos last 30 or 25 s. Segment indices are inclusive: `[1, 3]` is 5
    to 20 s. The official metric (`DiDeMoMetrics`) needs all moments; for training, see
    `keep_consensus`.

    Args:
        root: Folder with `{split}_data.json`.
        split: Split to load.

    Raises:
        FileError, ConfigError: As `load_charades_sta`.
        AnnotationError: If the content is wrong; the message has the number of the record, from 1.

    Source: Hendricks et al., "Localizing Moments in Video with Natural Language",
    arXiv 1708.01641.
    """
    check_choice("load_didemo", "split", split, ("train", "val", "test"))
    collector = AnnotationCollector(Path(root) / f"{split}_data.json")
    records = read_json(collector.path)
    if not isinstance(records, list):
        raise AnnotationError(message(str(collector.path), "a list of records", shown(records)))
    for index, record in enumerate(records, start=1):
        who = f"{collector.path} record {index}"
        segments = number(who, record, "num_segments", above=0)
        times = pairs(who, record, "times")
        for start, end in times:
            if start % 1 or end % 1 or not 0 <= start <= end < segments:
                expected = f"times as [first, last] of segments 0 to {segments - 1:g}"
                raise AnnotationError(message(who, expected, f"[{start:g}, {end:g}]"))
        collector.add(
            who,
            index,
            field(who, record, "video"),
            sentence(who, field(who, record, "description")),
            segments * SEGMENT_SECONDS,
            [(start * SEGMENT_SECONDS, (end + 1) * SEGMENT_SECONDS) for start, end in times],
            query_id(who, record, "annotation_id"),
        )
    return collector.collected()


def keep_consensus(annotations: AnnotationSet) -> AnnotationSet:
    """Return `annotations` with one moment per query: the one closest to all others by mean IoU.

    Ties go to the first moment. Queries without a moment stay.

    Source: VLG-Net, arXiv 2011.10132.
    """
    return AnnotationSet(
        (
            replace(item, moments=(_consensus(item.moments),)) if item.moments else item
            for item in annotations
        ),
        annotations.report,
    )


def _consensus(moments: Sequence[tuple[float, float]]) -> tuple[float, float]:
    # In plain Python, as there are only about four.
    return max(moments, key=lambda one: sum(_iou(one, other) for other in moments))


def _iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    overlap = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return overlap / (one[1] - one[0] + other[1] - other[0] - overlap)
