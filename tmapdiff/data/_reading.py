"""What the readers of annotation files share: text, JSON, and a tally of what was done."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from tmapdiff._core.checks import check_choice, check_no_address, message, shown
from tmapdiff._core.limits import JSON_GROWTH, TEXT_GROWTH, read_at_most, read_line
from tmapdiff._core.numbers import finite_number
from tmapdiff.data._video_ids import check_video_id
from tmapdiff.data.annotations import Annotation, AnnotationReport, AnnotationSet, DroppedLine
from tmapdiff.errors import AnnotationError, FileError

Parts = Mapping[str, Sequence[str]]
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how files begin that Windows calls "Unicode"


class AnnotationCollector:
    """Gathers the annotations of a file, cuts moments to their videos, and drops empty ones.

    Both ends are cut: annotators' times are rounded, or start a frame early.

    Args:
        path: The file, for the report.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.cut_starts = 0
        self.cut_ends = 0
        self.annotations: list[Annotation] = []
        self.dropped: list[DroppedLine] = []
        self._places: dict[int | str, str] = {}  # of queries, by their names

    def add(
        self,
        who: str,
        line: int,
        video_id: Any,
        query: str,
        duration: float,
        moments: list[tuple[float, float]],
        qid: int | str | None = None,
    ) -> None:
        """Add one record; it is dropped when no moment of it is left.

        Args:
            who: File and line or the like, for messages.
            line: Line or number of the record, for the report.
            video_id: The video.
            query: The sentence.
            duration: Seconds the video lasts.
            moments: Start and end in seconds.
            qid: Name of the query; its position among the kept ones, if None.

        Raises:
            AnnotationError: If the record is none, for another reason than an empty moment, or its
                name is that of another.
        """
        self.lines += 1
        check_video_id(who, video_id)
        kept: list[tuple[float, float]] = []
        for start, end in moments:
            if start >= end:
                self.dropped.append(DroppedLine(line, "start not before end"))
            elif start >= duration:
                self.dropped.append(DroppedLine(line, "starts past the video's end"))
            elif end <= 0:
                self.dropped.append(DroppedLine(line, "ends before the video's start"))
            else:
                self.cut_starts += start < 0
                self.cut_ends += end > duration
                kept.append((max(start, 0.0), min(end, duration)))
        if kept:
            name = len(self.annotations) if qid is None else qid
            if name in self._places:
                got = f"{shown(name)} again, as in {self._places[name]}"
                raise AnnotationError(message(who, "a qid of its own", got))
            self._places[name] = who.removeprefix(f"{self.path} ")
            try:
                found = Annotation(name, video_id, query, duration, tuple(kept))
            except AnnotationError as error:
                raise AnnotationError(f"{who}: {error}") from None
            self.annotations.append(found)

    def collected(self) -> AnnotationSet:
        """Return all annotations with their report."""
        kept = len(self.annotations)
        report = AnnotationReport(
            self.path.name,
            self.lines,
            kept,
            self.cut_ends,
            tuple(self.dropped),
            cut_starts=self.cut_starts,
        )
        return AnnotationSet(self.annotations, report)


def find_part(who: str, place: str | os.PathLike[str], split: str | None, files: Parts) -> Path:
    """Find the file of a part of a data set.

    Args:
        who: Name for messages.
        place: The folder of the data set; or the file itself, without `split`.
        split: The part.
        files: Names that the file of each part may have.

    Raises:
        FileError: If the folder has no file of the part, or several.
        ConfigError: If there is no such part, or a folder is given without one.
    """
    path = Path(place)
    if split is None and not path.is_dir():
        return path
    names = files[check_choice(who, "split", split or "none", files)]
    found = [path / name for name in names if (path / name).is_file()]
    if len(found) > 1:
        got = ", ".join(one.name for one in found)
        raise FileError(message(who, f"one file of {split} in {path}", got, "Name the file."))
    return found[0] if found else path / names[0]


def read_text(path: Path, growth: int = TEXT_GROWTH) -> str:
    """Read a file as UTF-8.

    Args:
        path: The file.
        growth: Bytes of memory that a byte of it may become.

    Raises:
        FileError: If it is missing, cannot be read, or (`SizeLimitError`) is larger than it may be.
        AnnotationError: If it is no UTF-8 text.
    """
    with _opened(path) as file:
        return _decoded(path, 1, read_at_most(str(path), file, growth))


def text_lines(path: Path, growth: int = TEXT_GROWTH) -> Iterator[tuple[int, str]]:
    """Yield number and content of each line of a file in UTF-8, of which only one is kept.

    Args:
        path: The file.
        growth: Bytes of memory that a byte of a line may become.

    Raises:
        FileError: If it is missing, cannot be read, or (`SizeLimitError`) a line is longer than it
            may be.
        AnnotationError: If it is no UTF-8 text.
    """
    with _opened(path) as file:
        for line in count(1):
            content = read_line(f"{path} line {line}", file, growth)
            if not content:
                return
            yield line, _decoded(path, line, content.removesuffix(b"\n"))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        check_no_address("annotations", path)
        got = "no such file" if path.parent.is_dir() else "no such folder"
        raise FileError(message("annotations", f"{path.name} in {path.parent}", got)) from None
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}.") from error


def _decoded(path: Path, line: int, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        got = f"the byte 0x{content[error.start]:02x}"
        hint = "It is UTF-16: save it as UTF-8." if content.startswith(_UTF_16) else ""
        raise AnnotationError(message(f"{path} line {line}", "UTF-8 text", got, hint)) from error


def parse_json(who: str, text: str) -> Any:
    """Parse JSON.

    Raises:
        AnnotationError: If it is none.
    """
    try:
        return json.loads(text)
    # Deep nesting ends in a RecursionError, and a number of many digits in a ValueError.
    except (ValueError, RecursionError) as error:
        first_line = str(error).splitlines()[0]
        raise AnnotationError(message(who, "JSON", first_line)) from error


def json_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield line number, name for messages, and content of each line of JSON that is not blank.

    Raises:
        FileError: If the file is missing or cannot be read.
        AnnotationError: If a line is no JSON.
    """
    for line, text in text_lines(path, JSON_GROWTH):
        if text.strip():
            who = f"{path} line {line}"
            yield line, who, parse_json(who, text)


def videos(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield name for messages, id and record of each video of a JSON object.

    Raises:
        FileError: If the file is missing or cannot be read.
        AnnotationError: If it is no JSON object.
    """
    content = parse_json(str(path), read_text(path, JSON_GROWTH))
    if not isinstance(content, dict):
        raise AnnotationError(message(str(path), "an object with a field a video", shown(content)))
    for video_id, record in content.items():
        yield f"{path}, video {shown(video_id)}", video_id, record


def field(who: str, record: Any, name: str) -> Any:
    """Return a field of a JSON object.

    Raises:
        AnnotationError: If it is no object, or has no such field.
    """
    if not isinstance(record, dict):
        raise AnnotationError(message(who, f"an object with the field {name!r}", shown(record)))
    if name not in record:
        listed = ", ".join(list(map(str, record))[:8]) or "none"
        raise AnnotationError(message(who, f"the field {name!r}", f"the fields {listed}"))
    return record[name]


def query_id(who: str, record: Any) -> int | str:
    """Return the field `qid` of a JSON object.

    Raises:
        AnnotationError: If there is none, or it is neither a number nor a text.
    """
    qid = field(who, record, "qid")
    if isinstance(qid, bool) or not isinstance(qid, int | str):
        raise AnnotationError(message(who, "qid to be a number or a text", shown(qid)))
    return qid


def number(
    who: str, name: str, value: Any, *, above: float | None = None, at_least: float = -math.inf
) -> float:
    """Return a finite JSON number that is within bounds, as a float.

    Raises:
        AnnotationError: If it is none.
    """
    found = finite_number(value)
    if found is None or found < at_least or (above is not None and found <= above):
        bound = f" >= {at_least:g}" if math.isfinite(at_least) else ""
        bound = bound if above is None else f" > {above:g}"
        raise AnnotationError(message(who, f"{name} to be a number{bound}", shown(value)))
    return found


def pairs(who: str, name: str, value: Any) -> list[tuple[float, float]]:
    """Return a JSON list of pairs of numbers, which may lie outside of a video.

    Raises:
        AnnotationError: If it is none, or is empty.
    """
    if not isinstance(value, list) or not value:
        raise AnnotationError(message(who, f"{name} to be a list of pairs", shown(value)))
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise AnnotationError(message(who, f"{name} to be pairs [start, end]", shown(pair)))
    return [(number(who, name, start), number(who, name, end)) for start, end in value]


def sentence(who: str, value: Any) -> str:
    """Return a JSON text on one line, without blanks at its ends.

    Raises:
        AnnotationError: If it is none, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(message(who, "a sentence", shown(value)))
    return " ".join(value.split())
