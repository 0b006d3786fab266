"""Shared parts of the readers of annotation files: text, JSON, and the report.

They raise FileError if a file is missing or unreadable, SizeLimitError above the memory limit, and
AnnotationError if the content is wrong. `who` names the file and the line or record in messages;
`growth` is the most bytes of memory per byte of the file.
"""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tmapdiff._core.checks import check_choice, check_no_address, first_line, message, shown
from tmapdiff._core.limits import JSON_GROWTH, TEXT_GROWTH, read_at_most, read_line
from tmapdiff._core.numbers import finite_number
from tmapdiff.data._video_ids import check_video_id
from tmapdiff.data.annotations import Annotation, AnnotationReport, AnnotationSet, check_numbers
from tmapdiff.errors import AnnotationError, FileError

Parts = Mapping[str, Sequence[str]]
# First bytes of files that are not UTF-8. Windows calls UTF-16 "Unicode".
_HINTS = {
    b"\xff\xfe": "The file is UTF-16: save it as UTF-8.",
    b"\xfe\xff": "The file is UTF-16: save it as UTF-8.",
    b"\x1f\x8b": "The file is compressed: unpack it with gunzip.",
}


class AnnotationCollector:
    """Collects the annotations of a file, clips moments to their videos, and drops empty ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.cut_starts = 0
        self.cut_ends = 0
        self.annotations: list[Annotation] = []
        self.dropped: dict[str, list[int]] = defaultdict(list)
        self._places: dict[int | str, str] = {}  # places of queries in the file, by qid

    def add(
        self,
        who: str,
        line: int,
        video_id: Any,
        query: str,
        duration: float,
        moments: list[tuple[float, float]],
        qid: int | str | None = None,
        saliency: tuple[tuple[float, ...], ...] | None = None,
    ) -> None:
        """Add a record, unless all of its moments are dropped; the report names it by `line`.

        A record without moments is kept: its query describes nothing in the video. `qid` defaults
        to the position among the kept records.
        """
        self.lines += 1
        check_video_id(who, video_id)
        kept: list[tuple[float, float]] = []
        for start, end in moments:
            if start >= end:
                self.dropped["start not before end"].append(line)
            elif start >= duration:
                self.dropped["starts after the video's end"].append(line)
            elif end <= 0:
                self.dropped["ends before the video's start"].append(line)
            else:
                self.cut_starts += start < 0
                self.cut_ends += end > duration
                kept.append((max(start, 0.0), min(end, duration)))
        if moments and not kept:
            return
        name = len(self.annotations) if qid is None else qid
        if name in self._places:
            got = f"{shown(name)} again, as in {self._places[name]}"
            raise AnnotationError(message(who, "a unique qid", got))
        self._places[name] = who.removeprefix(f"{self.path} ")
        try:
            annotation = Annotation(name, video_id, query, duration, tuple(kept), saliency)
        except AnnotationError as error:
            raise AnnotationError(f"{who}: {error}") from None
        self.annotations.append(annotation)

    def collected(self) -> AnnotationSet:
        """Return all annotations with the report."""
        report = AnnotationReport(
            self.path.name,
            self.lines,
            len(self.annotations),
            self.cut_ends,
            {reason: tuple(lines) for reason, lines in self.dropped.items()},
            cut_starts=self.cut_starts,
            without_moment=sum(not item.moments for item in self.annotations),
        )
        return AnnotationSet(self.annotations, report)


def find_part(who: str, place: str | os.PathLike[str], split: str | None, files: Parts) -> Path:
    """Return the file of a split in a folder, or `place` itself if it is a file.

    Several files raise FileError, an unknown split ConfigError.
    """
    path = Path(place)
    if split is None and not path.is_dir():
        return path
    names = files[check_choice(who, "split", split or "none", files)]
    there = [path / name for name in names if (path / name).is_file()]
    if len(there) > 1:
        got = ", ".join(one.name for one in there)
        raise FileError(message(who, f"one file of {split} in {path}", got, "Name the file."))
    return there[0] if there else path / names[0]


def read_text(path: Path, growth: int = TEXT_GROWTH) -> str:
    """Read a UTF-8 file."""
    with reading(path), path.open("rb") as file:
        return _decoded(path, 1, read_at_most(str(path), file, growth))


def text_lines(path: Path, growth: int = TEXT_GROWTH) -> Iterator[tuple[int, str]]:
    """Yield number and content of each line of a UTF-8 file, one at a time."""
    with reading(path), path.open("rb") as file:
        for line in count(1):
            content = read_line(f"{path} line {line}", file, growth)
            if not content:
                return
            yield line, _decoded(path, line, content.removesuffix(b"\n"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn OSError into a FileError that names the file."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        check_no_address("reading", path)
        raise FileError(f"cannot read {path}: {error.strerror or error}.") from error


def _decoded(path: Path, line: int, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        got = f"the byte 0x{content[error.start]:02x}"
        hint = _HINTS.get(content[:2] if line == 1 else b"", "Save it as UTF-8.")
        raise AnnotationError(message(f"{path} line {line}", "UTF-8 text", got, hint)) from error


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return _parsed(str(path), read_text(path, JSON_GROWTH))


def json_or_none(path: Path) -> Any:
    """Read a JSON file; return None if it is not JSON."""
    with reading(path), path.open("rb") as file:
        content = read_at_most(str(path), file, JSON_GROWTH)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _parsed(who: str, text: str) -> Any:
    try:
        return _JSON.decode(text)
    # Deep nesting raises RecursionError, numbers of many digits ValueError.
    except (ValueError, RecursionError) as error:
        raise AnnotationError(message(who, "JSON", first_line(error))) from error


def _each_once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, of which Python would lose all but the last value of a repeated field."""
    found = dict(fields)
    if len(found) < len(fields):
        ((again, _),) = Counter(name for name, _ in fields).most_common(1)
        raise ValueError(f"the field {again!r} twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_each_once)  # json.loads would make one for each line


def json_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield line number, name for messages, and content of each nonblank line of JSON."""
    for line, text in text_lines(path, JSON_GROWTH):
        if text.strip():
            who = f"{path} line {line}"
            yield line, who, _parsed(who, text)


def videos(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield name for messages, id and record of each video in a JSON object."""
    content = read_json(path)
    if not isinstance(content, dict):
        expected = "an object with a field per video"
        raise AnnotationError(message(str(path), expected, shown(content)))
    for video_id, record in content.items():
        yield f"{path}, video {shown(video_id)}", video_id, record


def field(who: str, record: Any, name: str) -> Any:
    """Return a field of a JSON object."""
    if not isinstance(record, dict):
        raise AnnotationError(message(who, f"an object with the field {name!r}", shown(record)))
    if name not in record:
        listed = ", ".join(list(map(str, record))[:8]) or "none"
        raise AnnotationError(message(who, f"the field {name!r}", f"the fields {listed}"))
    return record[name]


def query_id(who: str, record: Any, name: str = "qid") -> int | str:
    """Return the field `name` of a JSON object, an integer or text."""
    qid = field(who, record, name)
    if isinstance(qid, bool) or not isinstance(qid, int | str):
        raise AnnotationError(message(who, f"{name} to be an integer or text", shown(qid)))
    return qid


def number(
    who: str, record: Any, name: str, *, above: float = -math.inf, at_least: float = -math.inf
) -> float:
    """Return a numeric field of a JSON object, which must be finite and within bounds."""
    value = field(who, record, name)
    found = finite_number(value)
    if found is None or found < at_least or found <= above:
        bound = f" >= {at_least:g}" if math.isfinite(at_least) else ""
        bound = f" > {above:g}" if math.isfinite(above) else bound
        raise AnnotationError(message(who, f"{name} to be a number{bound}", shown(value)))
    return found


def pairs(
    who: str, record: Any, name: str, *, may_be_empty: bool = False
) -> list[tuple[float, float]]:
    """Return a field of a JSON object that is a list of pairs of numbers."""
    value = field(who, record, name)
    if not isinstance(value, list) or not (value or may_be_empty):
        raise AnnotationError(message(who, f"{name} to be a list of pairs", shown(value)))
    checked = (check_numbers(who, f"[start, end] in {name}", pair, 2) for pair in value)
    return [(float(start), float(end)) for start, end in checked]


def sentence(who: str, value: Any) -> str:
    """Return a nonblank JSON text as one line, with whitespace normalized."""
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(message(who, "a sentence", shown(value)))
    return " ".join(value.split())
