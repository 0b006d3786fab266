"""QVHighlights and other datasets in moment_detr's JSON lines, with several moments per query."""

import os
from pathlib import Path
from typing import Any

from tmapdiff._core.checks import message, shown
from tmapdiff.data._reading import (
    AnnotationCollector,
    field,
    json_lines,
    number,
    pairs,
    query_id,
    sentence,
)
from tmapdiff.data.annotations import AnnotationSet, check_numbers
from tmapdiff.errors import AnnotationError

CLIP_SECONDS = 2  # of saliency ratings


def load_moment_jsonl(path: str | os.PathLike[str]) -> AnnotationSet:
    """Load queries in the format of moment_detr, one JSON object per line.

    QVHighlights uses it, and moment_detr, lighthouse and others convert Charades-STA, ActivityNet
    Captions, TACoS and more to it. Windows are clipped to the video and dropped if empty or
    outside, as are queries that lose all windows. A query with an empty list of windows describes
    nothing in the video.

    Args:
        path: File of lines with `qid`, `query`, `vid`, `duration` and `relevant_windows` (seconds),
            and with `relevant_clip_ids` and `saliency_scores` for highlights.

    Raises:
        FileError: If the file is missing or cannot be read.
        AnnotationError: If a line is wrong, two have the same `qid`, or windows are missing or
            null, as in test sets and sets of highlights only.

    Source: Lei et al., "QVHighlights", arXiv 2107.09609.
    """
    collector = AnnotationCollector(Path(path))
    for line, who, record in json_lines(collector.path):
        qid = query_id(who, record)
        duration = number(who, record, "duration", above=0)
        # Sets with highlights but no moments have null.
        if record.get("relevant_windows") is None:
            hint = "A file without moments, such as a test set, cannot be used here."
            raise AnnotationError(message(who, "the field 'relevant_windows'", "none", hint))
        collector.add(
            who,
            line,
            field(who, record, "vid"),
            sentence(who, field(who, record, "query")),
            duration,
            pairs(who, record, "relevant_windows", may_be_empty=True),
            qid,
            _saliency(who, record, duration),
        )
    return collector.collected()


def _saliency(who: str, record: Any, duration: float) -> tuple[tuple[float, ...], ...] | None:
    """Return the ratings of all clips; clips not listed are rated 0."""
    ratings = record.get("saliency_scores")
    if ratings is None:
        return None
    places = field(who, record, "relevant_clip_ids")
    lists = isinstance(places, list) and isinstance(ratings, list)
    if not lists or len(places) != len(ratings) or not all(isinstance(r, list) for r in ratings):
        expected = "a list in saliency_scores per entry of relevant_clip_ids"
        raise AnnotationError(message(who, expected, shown(ratings)))
    annotators = len(ratings[0]) if ratings else 1
    clips = [(0.0,) * annotators] * int(duration / CLIP_SECONDS)
    for place, rating in zip(places, ratings, strict=True):
        check_numbers(who, "saliency_scores of a clip", rating, annotators)
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(clips):
            expected = f"relevant_clip_ids from 0 to {len(clips) - 1}"
            raise AnnotationError(message(who, expected, shown(place)))
        clips[place] = tuple(map(float, rating))
    return tuple(clips)
