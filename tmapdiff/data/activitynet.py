"""ActivityNet Captions and TACoS: JSON objects of videos, each with its sentences and times."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tmapdiff._checks import message
from tmapdiff.data._reading import (
    AnnotationCollector,
    field,
    number,
    pairs,
    sentence,
    shown,
    videos,
)
from tmapdiff.data.annotations import AnnotationSet
from tmapdiff.errors import AnnotationError


def load_activitynet_captions(path: str | os.PathLike[str]) -> AnnotationSet:
    """Load the sentences and moments of ActivityNet Captions.

    Moments are cut to the video; those that are empty, or lie outside of it, are dropped. `qid` is
    the position among the kept sentences, from 0.

    Args:
        path: `train.json`, `val_1.json` or `val_2.json`: by video `duration`, `timestamps`
            (seconds) and `sentences`. Which of the two last is the test set differs from paper to
            paper.

    Raises:
        FileError: If the file is missing or cannot be read.
        AnnotationError: If it is not of this form; the message names the video.

    Source: Krishna et al., "Dense-Captioning Events in Videos", arXiv 1705.00754.
    """
    collector = AnnotationCollector(Path(path))
    for who, video_id, record in videos(collector.path):
        duration = number(who, "duration", field(who, record, "duration"), above=0)
        for query, moment in _sentences(who, record):
            collector.add(who, collector.lines + 1, video_id, query, duration, [moment])
    return collector.collected()


def load_tacos(path: str | os.PathLike[str], *, keep_suffix: bool = False) -> AnnotationSet:
    """Load the sentences and moments of TACoS, whose times are frames.

    Moments are treated as by `load_activitynet_captions`.

    Args:
        path: `train.json`, `val.json` or `test.json`: by video `num_frames`, `fps`, `timestamps`
            (frames) and `sentences`.
        keep_suffix: Whether video ids keep their `.avi`. Feature files do in 2D-TAN, and do not in
            MS-2D-TAN and lighthouse.

    Raises:
        FileError: If the file is missing or cannot be read.
        AnnotationError: If it is not of this form; the message names the video.

    Source: Regneri et al., "Grounding Action Descriptions in Videos", TACL 2013.
    """
    collector = AnnotationCollector(Path(path))
    for who, video_id, record in videos(collector.path):
        fps = number(who, "fps", field(who, record, "fps"), above=0)
        frames = number(who, "num_frames", field(who, record, "num_frames"), above=0)
        name = video_id if keep_suffix else video_id.removesuffix(".avi")
        for query, (start, end) in _sentences(who, record):
            moments = [(start / fps, end / fps)]
            collector.add(who, collector.lines + 1, name, query, frames / fps, moments)
    return collector.collected()


def _sentences(who: str, record: Any) -> Iterator[tuple[str, tuple[float, float]]]:
    sentences = field(who, record, "sentences")
    if not isinstance(sentences, list):
        raise AnnotationError(message(who, "a list of sentences", shown(sentences)))
    times = pairs(who, "timestamps", field(who, record, "timestamps")) if sentences else []
    if len(times) != len(sentences):
        expected = f"as many timestamps as sentences, {len(sentences)}"
        raise AnnotationError(message(who, expected, len(times)))
    for text, moment in zip(sentences, times, strict=True):
        yield sentence(who, text), moment
