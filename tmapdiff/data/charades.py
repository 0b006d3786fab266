"""Charades-STA: sentences and moments, and the action annotations of Charades."""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tmapdiff._core.checks import check_choice, message, shown
from tmapdiff._core.numbers import parse_number
from tmapdiff.data._reading import AnnotationCollector, read_text, text_lines
from tmapdiff.data._video_ids import check_video_id
from tmapdiff.data.annotations import AnnotationSet, check_duration, check_numbers
from tmapdiff.errors import AnnotationError, FileError

TIMELINE = "timeline"  # name of features simulated from the actions, in place of a store's path
NUM_CHARADES_CLASSES = 157

_ACTION_CLASS = re.compile(r"c([0-9]{3})")


@dataclass(frozen=True)
class CharadesVideo:
    """A video and the actions in it, as annotated in Charades.

    Args:
        duration: Duration of the video in seconds.
        actions: Class index (0 to 156 in Charades), start and end in seconds. Ends may lie after
            the video, as annotators' times are rounded.

    Raises:
        AnnotationError: If the duration is not positive, or an action is not three numbers.
    """

    duration: float
    actions: tuple[tuple[int, float, float], ...]

    def __post_init__(self) -> None:
        who = "CharadesVideo"
        check_duration(who, self.duration)
        if not isinstance(self.actions, list | tuple):
            raise AnnotationError(message(who, "a list of actions", shown(self.actions)))
        for action in self.actions:
            check_numbers(who, "(class, start, end)", action, 3)


def load_charades_sta(
    root: str | os.PathLike[str], split: Literal["train", "test"]
) -> AnnotationSet:
    """Load the sentences and moments of Charades-STA.

    Moments are clipped to their video, and dropped if empty then: four of the official training
    file. 12,404 (train) and 3,720 (test) remain. `qid` is the position among the kept lines, from
    0.

    Args:
        root: Folder with `charades_sta_{split}.txt` and, for the durations,
            `Charades_v1_{split}.csv`.
        split: Split to load.

    Raises:
        FileError: If a file is missing or cannot be read.
        AnnotationError: If a line cannot be parsed, or its video is not in the csv or has an id
            that could leave a folder.
        ConfigError: If `split` is unknown.

    Source: Gao et al., "TALL: Temporal Activity Localization via Language Query",
    arXiv 1705.02101. Lines read `VIDEO START END##sentence.`
    """
    videos = load_charades_actions(root, split)
    durations = {video_id: video.duration for video_id, video in videos.items()}
    path = Path(root) / f"charades_sta_{split}.txt"
    return read_sta(path, durations, f"Charades_v1_{split}.csv")


def read_sta(path: Path, durations: Mapping[str, float], source: str) -> AnnotationSet:
    """Read lines of `VIDEO START END##sentence.`; clip to the durations of the file `source`."""
    collector = AnnotationCollector(path)
    for line, text in text_lines(path):
        if not text.strip():
            continue
        who = f"{path} line {line}"
        left, separator, query = text.partition("##")
        fields = left.rsplit(maxsplit=2)  # video ids may contain blanks
        if not separator or len(fields) != 3:
            raise AnnotationError(message(who, "'VIDEO START END##sentence'", shown(text)))
        video_id = fields[0]
        if video_id not in durations:
            raise AnnotationError(message(who, f"a video of {source}", shown(video_id)))
        moment = (_parse_seconds(who, fields[1]), _parse_seconds(who, fields[2]))
        collector.add(who, line, video_id, query.strip(), durations[video_id], [moment])
    return collector.collected()


def check_charades_actions(root: str | os.PathLike[str]) -> None:
    """Raise FileError if a folder lacks the files of `timeline` features."""
    folder = Path(root)
    for split in ("train", "test"):
        path = folder / f"Charades_v1_{split}.csv"
        if not path.is_file():
            got = "no such file" if folder.is_dir() else "no such folder"
            hint = "Pass the folder of Charades as --root or charades_root."
            raise FileError(message(TIMELINE, f"{path.name} in {folder}", got, hint))


def load_charades_actions(
    root: str | os.PathLike[str], split: Literal["train", "test"]
) -> dict[str, CharadesVideo]:
    """Load the durations and action annotations of Charades, by video id.

    Starts are clipped to 0. Actions that are empty or start after the video are dropped: 7 of
    49,809 in the official training file, none in the test file.

    Args:
        root: Folder with `Charades_v1_{split}.csv`.
        split: Split to load.

    Raises:
        FileError, AnnotationError, ConfigError: As `load_charades_sta`, for the csv.

    Source: Sigurdsson et al., "Hollywood in Homes", arXiv 1604.01753.
    """
    check_choice("Charades", "split", split, ("train", "test"))
    path = Path(root) / f"Charades_v1_{split}.csv"
    videos: dict[str, CharadesVideo] = {}
    for line, row in _read_rows(path, ("id", "actions", "length")):
        who = f"{path} line {line}"
        video_id = check_video_id(who, row["id"])
        if video_id in videos:
            raise AnnotationError(message(who, "each video once", f"{shown(video_id)} again"))
        duration = _parse_seconds(who, row["length"])
        if duration <= 0:
            raise AnnotationError(message(who, "a length > 0 seconds", repr(row["length"])))
        actions = (_parse_action(who, text) for text in row["actions"].split(";") if text.strip())
        kept = tuple(action for action in actions if action[1] < min(action[2], duration))
        videos[video_id] = CharadesVideo(duration, kept)
    return videos


def _parse_action(who: str, text: str) -> tuple[int, float, float]:
    fields = text.split()
    match = _ACTION_CLASS.fullmatch(fields[0])
    if len(fields) != 3 or match is None or int(match[1]) >= NUM_CHARADES_CLASSES:
        expected = f"actions as 'c000 START END', classes c000 to c{NUM_CHARADES_CLASSES - 1}"
        raise AnnotationError(message(who, expected, shown(text)))
    start, end = (_parse_seconds(who, field) for field in fields[1:])
    return int(match[1]), max(start, 0.0), end


def _parse_seconds(who: str, text: str) -> float:
    seconds = parse_number(text)
    if seconds is None:
        raise AnnotationError(message(who, "a time in seconds", shown(text)))
    return seconds


def _read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and row of a csv file, which must have `columns`."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if lacking := [column for column in columns if column not in (reader.fieldnames or ())]:
            expected = f"a header with the columns {', '.join(columns)}"
            got = f"none named {', '.join(lacking)}"
            raise AnnotationError(message(f"{path} line 1", expected, got))
        for row in reader:
            # DictReader fills short rows with None, and keeps extra fields under the key None.
            if None in row or None in row.values():
                expected = f"{len(reader.fieldnames or ())} fields, as in the header"
                got = "fewer" if None in row.values() else "more"
                raise AnnotationError(message(f"{path} line {reader.line_num}", expected, got))
            yield reader.line_num, row
    except csv.Error as error:
        who = f"{path} line {reader.line_num + 1}"
        raise AnnotationError(message(who, "comma-separated values", str(error))) from error
