"""Predictions of a localizer, and submission files of moment_detr."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmapdiff._core.checks import message, shown
from tmapdiff._core.files import written_beside
from tmapdiff.data._reading import field, json_lines, query_id, sentence
from tmapdiff.data._video_ids import check_video_id
from tmapdiff.data.annotations import check_numbers
from tmapdiff.errors import AnnotationError

_WINDOWS, _SALIENCY = "pred_relevant_windows", "pred_saliency_scores"


@dataclass(frozen=True)
class Prediction:
    """Ranked moments of one `query`, the `qid` of its dataset, in the video `video_id`.

    Attributes:
        windows: `(start, end, score)` in seconds, best first; none if it is not in the video.
        saliency: Score of each clip of 2 s, higher for better fits, or None.

    Raises:
        AnnotationError: If a window is not three numbers, or `saliency` not a list of numbers.
    """

    qid: int | str
    query: str
    video_id: str
    windows: tuple[tuple[float, float, float], ...]
    saliency: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        who = f"prediction {self.qid!r}"
        if not isinstance(self.windows, list | tuple):
            raise AnnotationError(message(who, "a list of windows", shown(self.windows)))
        for window in self.windows:
            check_numbers(who, "(start, end, score)", window, 3)
        if self.saliency is not None:
            check_numbers(who, "saliency", self.saliency)

    def as_submission(self) -> dict[str, Any]:
        """Return the fields of one line of a moment_detr submission file."""
        return {
            "qid": self.qid,
            "query": self.query,
            "vid": self.video_id,
            _WINDOWS: [
                # Seconds are rounded down, so that no end lies after the video's. Scores keep six
                # digits, as small ones must not be tied.
                [_round_down(start), _round_down(end), float(f"{score:.6g}")]
                for start, end, score in self.windows
            ],
            **({} if self.saliency is None else {_SALIENCY: list(self.saliency)}),
        }


def write_submission(predictions: Iterable[Prediction], path: str | os.PathLike[str]) -> None:
    """Write predictions in the format of moment_detr, one JSON object per line.

    Args:
        predictions: Moments of each query, in seconds.
        path: File to write or replace.

    Raises:
        FileError: If the file cannot be written.
        AnnotationError: If a video id is not allowed, such as one with a slash.

    Source: Lei et al., "QVHighlights", arXiv 2107.09609; `standalone_eval` of
    github.com/jayleicn/moment_detr.
    """
    with written_beside(path) as new, new.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            check_video_id("write_submission", prediction.video_id)
            file.write(json.dumps(prediction.as_submission()) + "\n")


def read_submission(path: str | os.PathLike[str]) -> tuple[Prediction, ...]:
    """Read a submission file of moment_detr, lighthouse or `write_submission`.

    Args:
        path: File of lines with `qid`, `query`, `vid` and `pred_relevant_windows` (start and end in
            seconds, score), best first, possibly empty, and optionally `pred_saliency_scores`.

    Raises:
        FileError: If the file is missing or cannot be read.
        AnnotationError: If a line is wrong, or two have the same `qid`.
    """
    found: dict[int | str, Prediction] = {}
    for _, who, record in json_lines(Path(path)):
        qid = query_id(who, record)
        if qid in found:
            raise AnnotationError(message(who, "unique qids", f"{qid!r} twice"))
        video_id = check_video_id(who, field(who, record, "vid"))
        query = sentence(who, field(who, record, "query"))
        windows = field(who, record, _WINDOWS)
        if not isinstance(windows, list):
            raise AnnotationError(message(who, f"{_WINDOWS} to be a list", shown(windows)))
        saliency = record.get(_SALIENCY)
        if saliency is not None:
            saliency = tuple(map(float, check_numbers(who, _SALIENCY, saliency)))
        moments = tuple(_window(who, one) for one in windows)
        found[qid] = Prediction(qid, query, video_id, moments, saliency)
    return tuple(found.values())


def _round_down(seconds: float) -> float:
    rounded = round(seconds, 4)
    return rounded if rounded <= seconds else round(rounded - 1e-4, 4)


def _window(who: str, value: Any) -> tuple[float, float, float]:
    numbers = check_numbers(who, f"[start, end, score] in {_WINDOWS}", value, 3)
    start, end, score = map(float, numbers)
    # Other models may predict starts before the video, or empty moments.
    if start > end:
        raise AnnotationError(message(who, f"{_WINDOWS} with start <= end", shown(value)))
    return start, end, score
