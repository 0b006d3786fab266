"""ActivityNet Captions and TACoS: JSON objects of videos with their sentences and times."""

import os
from collections.abc import Iterator
from typing import Any, Literal

from tmapdiff._core.checks import message, shown
from tmapdiff.data._reading import (
    AnnotationCollector,
    field,
    find_part,
    number,
    pairs,
    sentence,
    videos,
)
from tmapdiff.data.annotations import AnnotationSet
from tmapdiff.errors import AnnotationError

# The official names, and those of 2D-TAN, which like MS-2D-TAN tests on val_2.
_CAPTIONS = {
    "train": ("train.json",),
    "val": ("val_1.json", "val.json"),
    "test": ("val_2.json", "test.json"),
}
_COOKING = {split: (f"{split}.json",) for split in ("train", "val", "test")}


def load_activitynet_captions(
    root: str | os.PathLike[str], split: Literal["train", "val", "test"] | None = None
) -> AnnotationSet:
    """Load the sentences and moments of ActivityNet Captions.

    Moments are clipped to the video, and dropped if empty or outside. `qid` is the position among
    the kept sentences, from 0.

    Args:
        root: Folder with `train.json`, `val_1.json` and `val_2.json`, which have `duration`,
            `timestamps` (seconds) and `sentences` per video. Or one such file, without `split`.
        split: Split to load. `val` is `val_1.json` (or `val.json`) and `test` is `val_2.json` (or
            `test.json`), as in 2D-TAN and MS-2D-TAN; papers differ.

    Raises:
        FileError: If the file is missing or cannot be read, or the split has two files.
        AnnotationError: If the content is wrong; the message names the video.
        ConfigError: If `split` is unknown, or missing for a folder.

    Source: Krishna et al., "Dense-Captioning Events in Videos", arXiv 1705.00754.
    """
    who = "load_activitynet_captions"
    collector = AnnotationCollector(find_part(who, root, split, _CAPTIONS))
    for who, video_id, record in videos(collector.path):
        duration = number(who, record, "duration", above=0)
        for query, moment in _sentences(who, record):
            collector.add(who, collector.lines + 1, video_id, query, duration, [moment])
    return collector.collected()


def load_tacos(
    root: str | os.PathLike[str], split: Literal["train", "val", "test"] | None = None
) -> AnnotationSet:
    """Load the sentences and moments of TACoS, as `load_activitynet_captions` does.

    The ids of videos lose their `.avi`; `AnnotationSet.restrict_to` adds it for stores with it.

    Args:
        root: Folder with `train.json`, `val.json` and `test.json`, which have `num_frames`, `fps`,
            `timestamps` (frames) and `sentences` per video. Or one such file, without `split`.
        split: Split to load.

    Raises:
        FileError, AnnotationError, ConfigError: As `load_activitynet_captions`.

    Source: Regneri et al., "Grounding Action Descriptions in Videos", TACL 2013.
    """
    collector = AnnotationCollector(find_part("load_tacos", root, split, _COOKING))
    for who, video_id, record in videos(collector.path):
        fps = number(who, record, "fps", above=0)
        frames = number(who, record, "num_frames", above=0)
        name = video_id.removesuffix(".avi")
        for query, (start, end) in _sentences(who, record):
            moments = [(start / fps, end / fps)]
            collector.add(who, collector.lines + 1, name, query, frames / fps, moments)
    return collector.collected()


def _sentences(who: str, record: Any) -> Iterator[tuple[str, tuple[float, float]]]:
    sentences = field(who, record, "sentences")
    if not isinstance(sentences, list):
        raise AnnotationError(message(who, "a list of sentences", shown(sentences)))
    times = pairs(who, record, "timestamps") if sentences else []
    if len(times) != len(sentences):
        expected = f"one timestamp per sentence, {len(sentences)}"
        raise AnnotationError(message(who, expected, len(times)))
    for text, moment in zip(sentences, times, strict=True):
        yield sentence(who, text), moment
