"""Which annotation files are at a place, and loading them whatever their format."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tmapdiff._core.checks import check_choice, message
from tmapdiff._core.files import list_visible
from tmapdiff._core.limits import JSON_GROWTH
from tmapdiff.data._reading import parse_json, read_text, text_lines
from tmapdiff.data.activitynet import load_activitynet_captions, load_tacos
from tmapdiff.data.annotations import AnnotationSet
from tmapdiff.data.charades import load_charades_sta
from tmapdiff.data.didemo import load_didemo
from tmapdiff.data.moment_jsonl import load_moment_jsonl
from tmapdiff.data.vslnet import load_vslnet
from tmapdiff.errors import AnnotationError, FileError

AnnotationFormat = Literal[
    "charades-sta", "didemo", "activitynet", "tacos", "vslnet", "moment-jsonl"
]
Split = Literal["train", "val", "test"]

_SPLITS = get_args(Split)
# Of ActivityNet Captions, 2D-TAN and MS-2D-TAN test on val_2.
_JSON_SPLITS = {"train": "train", "val": "val", "test": "test", "val_1": "val", "val_2": "test"}
_VSLNET_SPLITS = {**_JSON_SPLITS, "val_1": "test", "val_2": "val"}


@dataclass(frozen=True)
class AnnotationFile:
    """A file of annotations, and how it is read.

    Attributes:
        path: The file.
        format: Its format.
        split: The part of the data set that it holds; None if its name does not tell.
    """

    path: Path
    format: AnnotationFormat
    split: Split | None

    def load(self) -> AnnotationSet:
        """Load the annotations; of DiDeMo, with the moments of all annotators.

        Raises:
            FileError, AnnotationError, ConfigError: As the loader of the format.
        """
        loaders: dict[str, Any] = {
            "charades-sta": lambda: load_charades_sta(self.path.parent, self.split),  # type: ignore[arg-type]
            "didemo": lambda: load_didemo(self.path.parent, self.split),  # type: ignore[arg-type]
            "activitynet": lambda: load_activitynet_captions(self.path),
            "tacos": lambda: load_tacos(self.path),
            "vslnet": self._load_vslnet,
            "moment-jsonl": lambda: load_moment_jsonl(self.path),
        }
        loaded: AnnotationSet = loaders[self.format]()
        return loaded

    def _load_vslnet(self) -> AnnotationSet:
        folder = self.path.parent
        if self.path.suffix == ".txt":
            return load_vslnet(folder, "charades", self.split)  # type: ignore[arg-type]
        task: Any = _json_format(self.path)
        return load_vslnet(folder, task, self.split)  # type: ignore[arg-type]


def find_annotations(
    place: str | os.PathLike[str], format: AnnotationFormat | None = None
) -> tuple[AnnotationFile, ...]:
    """Find the annotation files of a data set, and tell their format.

    Args:
        place: The folder of the data set, with the files named as they are published, or one file.
            ActivityNet Captions' `val_1.json` counts as `val` and `val_2.json` as `test`, but with
            `format` vslnet the other way round.
        format: Format of the files; found by their names and contents, if None. The files of VSLNet
            for TACoS and ActivityNet Captions are those of the data sets: name it.

    Returns:
        The files, training first, then validation and test.

    Raises:
        FileError: If there is no such place, it cannot be read, or no annotation file is there.
        AnnotationError: If it is one file in no known format, or a file is no text.
        ConfigError: If there is no such format.
    """
    who = "find_annotations"
    if format is not None:
        check_choice(who, "format", format, get_args(AnnotationFormat))
    path = Path(place)
    if path.is_file():
        found = _recognised(path, format)
        if found is None:
            expected = f"a file of annotations in the format {format or 'of a known data set'}"
            hint = "Formats: " + ", ".join(get_args(AnnotationFormat)) + "."
            raise AnnotationError(message(who, expected, f"the file {path}", hint))
        return (found,)
    if not path.exists():
        got = "no such file" if path.suffix else "no such folder"
        raise FileError(message(who, f"annotations at {path}", got))
    files = [one for one in list_visible(path) if one.is_file()]
    listed = [one for one in (_recognised_beside(file, format) for file in files) if one]
    if not listed:
        expected = f"annotation files{f' of {format}' if format else ''} in {path}"
        raise FileError(message(who, expected, f"{len(files)} other files"))
    order = (*_SPLITS, None)
    return tuple(sorted(listed, key=lambda one: (order.index(one.split), one.path)))


def find_split(
    place: str | os.PathLike[str],
    split: Split | None = None,
    format: AnnotationFormat | None = None,
) -> AnnotationFile:
    """Find the one annotation file of a part of a data set.

    Args:
        place: As for `find_annotations`.
        split: The part, if there are several.
        format: As for `find_annotations`.

    Raises:
        FileError: As `find_annotations`, or if there is no such part, or several files are of it.
        AnnotationError: As `find_annotations`.
        ConfigError: If there is no such format or part.
    """
    who = "find_split"
    if split is not None:
        check_choice(who, "split", split, _SPLITS)
    found = find_annotations(place, format)
    chosen = found if split is None else [one for one in found if one.split == split]
    if len(chosen) != 1:
        expected = f"one file of annotations{f' for {split}' if split else ''} at {place}"
        got = ", ".join(f"{one.path.name} ({one.split or 'no split'})" for one in chosen or found)
        hint = "Name the file." if split else "Name the split."
        raise FileError(message(who, expected, got, hint))
    return chosen[0]


def load_annotations(
    place: str | os.PathLike[str],
    split: Split | None = None,
    format: AnnotationFormat | None = None,
) -> AnnotationSet:
    """Load the annotations of a part of a data set, whatever the format.

    Args:
        place: As for `find_annotations`.
        split: The part, if there are several.
        format: As for `find_annotations`.

    Raises:
        FileError, AnnotationError, ConfigError: As `find_split` and the loader of the format.
    """
    return find_split(place, split, format).load()


def _recognised_beside(path: Path, format: AnnotationFormat | None) -> AnnotationFile | None:
    """As `_recognised`, of a file among others: what cannot be read may be anything."""
    try:
        return _recognised(path, format)
    except AnnotationError:
        if path.stem in _JSON_SPLITS:
            raise
        return None


def _recognised(path: Path, format: AnnotationFormat | None) -> AnnotationFile | None:
    """Tell what annotations a file holds; None if it is none, or none in `format`."""
    name, folder = path.name, path.parent
    if match := re.fullmatch(r"charades_sta_(train|test)\.txt", name):
        split: Any = match[1]
        published = (folder / f"Charades_v1_{split}.csv").exists()
        vslnet = format == "vslnet" or (not published and (folder / "charades.json").exists())
        found = AnnotationFile(path, "vslnet" if vslnet else "charades-sta", split)
    elif match := re.fullmatch(r"(train|val|test)_data\.json", name):
        found = AnnotationFile(path, "didemo", match[1])  # type: ignore[arg-type]
    elif path.suffix == ".jsonl":
        if format is None and _is_submission(path):
            return None
        found = AnnotationFile(path, "moment-jsonl", _split_in(path.stem))
    elif path.suffix == ".json":
        kind = _json_format(path)
        if kind is None:
            return None
        if format == "vslnet":  # whose names say which part each file is
            if path.stem not in _VSLNET_SPLITS:
                return None
            found = AnnotationFile(path, "vslnet", _VSLNET_SPLITS[path.stem])  # type: ignore[arg-type]
        else:
            part: Any = _JSON_SPLITS.get(path.stem, _split_in(path.stem))
            found = AnnotationFile(path, kind, part)
    else:
        return None
    return found if format in (None, found.format) else None


def _json_format(path: Path) -> Literal["activitynet", "tacos"] | None:
    """Tell of which data set a JSON file by video is; None if of neither."""
    content = parse_json(str(path), read_text(path, JSON_GROWTH))
    record = next(iter(content.values()), None) if isinstance(content, dict) else None
    if not isinstance(record, dict) or not {"timestamps", "sentences"} <= record.keys():
        return None
    return "tacos" if "fps" in record else "activitynet"


def _is_submission(path: Path) -> bool:
    # By its first line; damaged ones are for the loader to tell of.
    return "pred_relevant_windows" in next(text_lines(path), (1, ""))[1]


def _split_in(stem: str) -> Split | None:
    words = re.split(r"[^a-z]+", stem.lower())
    found: list[Any] = [split for split in _SPLITS if split in words]
    return found[0] if len(found) == 1 else None
