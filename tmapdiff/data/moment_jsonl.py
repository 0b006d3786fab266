"""QVHighlights and all other sets in the JSON lines of moment_detr: several moments a query."""

import os
from pathlib import Path

from tmapdiff._core.checks import message
from tmapdiff.data._reading import (
    AnnotationCollector,
    field,
    json_lines,
    number,
    pairs,
    query_id,
    sentence,
)
from tmapdiff.data.annotations import AnnotationSet
from tmapdiff.errors import AnnotationError


def load_moment_jsonl(path: str | os.PathLike[str]) -> AnnotationSet:
    """Load queries in the form of moment_detr: one JSON object per line.

    QVHighlights is published so; moment_detr, lighthouse and others bring Charades-STA, ActivityNet
    Captions, TACoS and more into the same form. Windows are cut to the video; those that are empty,
    or lie outside of it, are dropped, and queries without one left.

    Args:
        path: Lines with `qid`, `query`, `vid`, `duration` and `relevant_windows` (seconds); other
            fields are not read.

    Raises:
        FileError: If the file is missing or cannot be read.
        AnnotationError: If a line is not of this form, two have the same `qid`, or the file has no
            windows, as that of a test set or one of highlights alone.

    Source: Lei et al., "QVHighlights", arXiv 2107.09609.
    """
    collector = AnnotationCollector(Path(path))
    for line, who, record in json_lines(collector.path):
        qid = query_id(who, record)
        # Sets that have highlights and no moments write null.
        if record.get("relevant_windows") is None:
            hint = "A set without moments, such as a test set, cannot be evaluated here."
            raise AnnotationError(message(who, "the field 'relevant_windows'", "none", hint))
        collector.add(
            who,
            line,
            field(who, record, "vid"),
            sentence(who, field(who, record, "query")),
            number(who, record, "duration", above=0),
            pairs(who, record, "relevant_windows"),
            qid,
        )
    return collector.collected()
