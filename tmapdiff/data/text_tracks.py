"""Reading subtitles and transcripts."""

import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from tmapdiff._core.checks import check_choice, check_range, message, shown
from tmapdiff._core.files import list_visible
from tmapdiff._core.limits import JSON_GROWTH, check_item_bytes
from tmapdiff.data._reading import field, json_lines, number, read_text, reading
from tmapdiff.errors import AnnotationError, ArgumentError

TRACK_SUFFIXES = (".srt", ".vtt", ".jsonl")


@dataclass(frozen=True)
class Cue:
    """A `text` of a track, on one line and without markup, from `start` to `end` in seconds.

    Raises:
        ArgumentError: If `start` is negative, `end` is not after it, or the text is blank.
    """

    start: float
    end: float
    text: str

    def __post_init__(self) -> None:
        check_range("Cue", "start", self.start, 0)
        check_range("Cue", "end", self.end, self.start, open_low=True)
        if not isinstance(self.text, str) or not self.text.strip():
            raise ArgumentError(message("Cue", "a text", shown(self.text)))


def load_text_track(path: str | os.PathLike[str]) -> tuple[Cue, ...]:
    """Load subtitles, captions or a transcript.

    SubRip (`.srt`) and WebVTT (`.vtt`) lose numbers and names of cues, settings, styles, notes,
    tags and inner times. JSON lines (`.jsonl`) have `start`, `end` or `duration` in seconds, and
    `text`, like Whisper's segments. Cues may overlap and have gaps. Empty cues are dropped.

    Args:
        path: A UTF-8 file.

    Returns:
        The cues, ordered by start.

    Raises:
        FileError: If the file cannot be read, or (`SizeLimitError`) exceeds the memory limit.
        AnnotationError: If the content is wrong, a cue ends before it starts, or there is none.
        ConfigError: If the suffix is unknown.
    """
    place = Path(path)
    suffix = check_choice("load_text_track", "the suffix", place.suffix.lower(), TRACK_SUFFIXES)
    found = _json_cues(place) if suffix == ".jsonl" else _timed_cues(place, suffix)
    cues = []
    for who, start, end, text in found:
        if end < start:
            raise AnnotationError(message(who, "a cue that ends after its start", f"{end:g} s"))
        line = " ".join(text.split())
        if end > start and line:
            cues.append(Cue(start, end, line))
    if not cues:
        raise AnnotationError(message(str(path), "timed texts", "none"))
    return tuple(sorted(cues, key=lambda cue: (cue.start, cue.end)))


def find_tracks(folder: Path) -> list[Path]:
    """Return the text tracks in a folder."""
    files = (path for path in list_visible(folder) if path.is_file())
    return [path for path in files if path.suffix.lower() in TRACK_SUFFIXES]


_Found = Iterator[tuple[str, float, float, str]]


def _json_cues(path: Path) -> _Found:
    if path.is_file():  # whose lines are all kept in memory
        with reading(path):
            size = path.stat().st_size
        check_item_bytes(str(path), "a text track", size * JSON_GROWTH)
    for _, who, record in json_lines(path):
        start = number(who, record, "start", at_least=0)
        if isinstance(record, dict) and "end" not in record and "duration" in record:
            end = start + number(who, record, "duration", at_least=0)
            number(who, {"end": end}, "end")  # the sum may be infinite
        else:
            end = number(who, record, "end", at_least=0)
        text: Any = field(who, record, "text")
        if not isinstance(text, str):
            raise AnnotationError(message(who, "text to be a text", shown(text)))
        yield who, start, end, text


def _timed_cues(path: Path, suffix: str) -> _Found:
    lines = _NEW_LINE.split(read_text(path, JSON_GROWTH))
    places = [*_places(lines, suffix)]
    for place, after in pairwise([*places, len(lines)]):
        who = f"{path} line {place + 1}"
        times = _TIMES.match(lines[place])
        if times is None:
            expected = "times of a cue, such as 00:01:02.500 --> 00:01:04.000"
            raise AnnotationError(message(who, expected, shown(lines[place])))
        content = lines[place + 1 : after]
        if suffix == ".vtt":  # an empty line ends it; YouTube's texts may start with a blank one
            text = _without_entities(_TAG.sub("", " ".join(takewhile(bool, content))))
        else:
            # Blank lines may be inside. The last line is the number of the next cue.
            if content and after < len(lines) and content[-1].strip().isdecimal():
                content.pop()
            text = _OVERRIDE.sub("", _TAG.sub("", " ".join(content)))
        start, end = _seconds(*times.groups()[:4]), _seconds(*times.groups()[4:])
        yield who, start, end, text


def _places(lines: list[str], suffix: str) -> Iterator[int]:
    """Yield the line numbers of times; notes of WebVTT may have arrows, up to an empty line."""
    in_note, after_empty = False, True
    for place, line in enumerate(lines):
        if suffix == ".vtt" and after_empty and re.match(r"NOTE(?:\s|$)", line):
            in_note = True
        in_note, after_empty = in_note and line != "", line == ""
        if "-->" in line and not in_note:
            yield place


def _without_entities(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a number of thousands of digits
        return text


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + int((fraction or "0").ljust(3, "0")) / 1000


_NEW_LINE = re.compile(r"\r?\r?\n|\r")  # Windows makes \r\r\n of \r\n that is written as text
_TIME = r"(?:([0-9]{1,6}):)?([0-9]{1,2}):([0-9]{2})(?:[.,]([0-9]{1,3}))?"
# Settings, or a place on the screen, may follow the times.
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?!\S)")
# <i>, </c>, <v Ann>, <c.yellow>, <00:01:02.500>, <font color="red">; not `3 < 4 and 5 > 4`.
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<[0-9:.]+>")
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")  # {\an8}
