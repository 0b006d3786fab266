"""Finding annotation files, and loading them in any format."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tmapdiff._core.checks import check_choice, message
from tmapdiff._core.files import list_visible
from tmapdiff.data._reading import number, read_json, text_lines, videos
from tmapdiff.data.activitynet import load_activitynet_captions, load_tacos
from tmapdiff.data.annotations import AnnotationSet
from tmapdiff.data.charades import load_charades_sta, read_sta
from tmapdiff.data.didemo import load_didemo
from tmapdiff.data.moment_jsonl import load_moment_jsonl
from tmapdiff.errors import AnnotationError, FileError

AnnotationFormat = Literal[
    "charades-sta", "didemo", "activitynet", "tacos", "vslnet", "moment-jsonl"
]
Split = Literal["train", "val", "test"]

# For ActivityNet Captions, 2D-TAN and MS-2D-TAN test on val_2.
_JSON_SPLITS = {"train": "train", "val": "val", "test": "test", "val_1": "val", "val_2": "test"}
_VSLNET_SPLITS = {**_JSON_SPLITS, "val_1": "test", "val_2": "val"}

# For ActivityNet Captions, VSLNet tests on val_1 and validates on val_2.
_VSLNET_FILES = {
    "charades": {"train": "charades_sta_train.txt", "test": "charades_sta_test.txt"},
    "activitynet": {"train": "train.json", "val": "val_2.json", "test": "val_1.json"},
    "tacos": {"train": "train.json", "val": "val.json", "test": "test.json"},
}


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file: `path`, `format`, and `split`, None if its name does not indicate one."""

    path: Path
    format: AnnotationFormat
    split: Split | None

    def load(self) -> AnnotationSet:
        """Load the annotations (for DiDeMo, with the moments of all annotators).

        Raises:
            FileError, AnnotationError, ConfigError: As the loader of the format.
        """
        folder, split = self.path.parent, cast(Any, self.split)
        if self.format == "charades-sta":
            return load_charades_sta(folder, split)
        if self.format == "didemo":
            return load_didemo(folder, split)
        if self.format == "vslnet":
            task: Any = "charades" if self.path.suffix == ".txt" else _json_format(self.path)
            return load_vslnet(folder, task, split)
        if self.format == "moment-jsonl":
            return load_moment_jsonl(self.path)
        load = load_tacos if self.format == "tacos" else load_activitynet_captions
        return load(self.path)


def load_vslnet(
    root: str | os.PathLike[str], task: Literal["charades", "activitynet", "tacos"], split: Split
) -> AnnotationSet:
    """Load the sentences and moments of a dataset in the files of VSLNet.

    Moments are clipped to the video and dropped if empty then, while VSLNet trains on them. `qid`
    is the position among the kept sentences, from 0. VSLNet's training file of Charades-STA differs
    from the official one: it has other moments in the four lines with empty ones, so that all
    12,408 lines remain.

    Args:
        root: VSLNet's folder `data/dataset/{task}`.
        task: VSLNet's name of the dataset.
        split: VSLNet's name of the split. Charades-STA has no `val`; for ActivityNet Captions,
            `val` is `val_2.json` and `test` is `val_1.json`.

    Raises:
        FileError, AnnotationError: As `load_charades_sta` and `load_activitynet_captions`.
        ConfigError: If the task or its split is unknown.

    Source: Zhang et al., "Span-based Localizing Network", arXiv 2004.13931; `util/data_gen.py` of
    github.com/26hzhang/VSLNet.
    """
    files = _VSLNET_FILES[check_choice("load_vslnet", "task", task, _VSLNET_FILES)]
    path = Path(root) / files[check_choice("load_vslnet", "split", split, files)]
    if task == "activitynet":
        return load_activitynet_captions(path)
    if task == "tacos":
        return load_tacos(path)
    lengths = Path(root) / "charades.json"
    durations = {
        video_id: number(who, record, "duration", above=0)
        for who, video_id, record in videos(lengths)
    }
    return read_sta(path, durations, lengths.name)


def find_annotations(
    place: str | os.PathLike[str], format: AnnotationFormat | None = None
) -> tuple[AnnotationFile, ...]:
    """Find the annotation files of a dataset with their formats.

    Args:
        place: Folder of the dataset, with the official file names, or one file. ActivityNet
            Captions' `val_1.json` counts as `val` and `val_2.json` as `test`; in the format
            `vslnet`, it is the other way round.
        format: Format of the files. Defaults to the one of their names and contents, which cannot
            identify VSLNet's files of TACoS and ActivityNet Captions.

    Returns:
        The files, ordered by training, validation and test.

    Raises:
        FileError: If the place does not exist, cannot be read or has no annotation files.
        AnnotationError: If it is one file of no known format, or a file is not text.
        ConfigError: If `format` is unknown.
    """
    who = "find_annotations"
    if format is not None:
        check_choice(who, "format", format, get_args(AnnotationFormat))
    path = Path(place)
    if not path.exists():
        got = "no such file" if path.suffix else "no such folder"
        raise FileError(message(who, f"annotations at {path}", got))
    alone = not path.is_dir()
    files = [path] if alone else [one for one in list_visible(path) if one.is_file()]
    found = [one for file in files if (one := _recognized(file, format, alone=alone))]
    if alone and not found:
        expected = f"annotations in {f'the format {format}' if format else 'a known format'}"
        hint = "Formats: " + ", ".join(get_args(AnnotationFormat)) + "."
        raise AnnotationError(message(who, expected, f"the file {path}", hint))
    if not found:
        expected = f"annotation files{f' of {format}' if format else ''} in {path}"
        raise FileError(message(who, expected, f"{len(files)} other files"))
    order = (*get_args(Split), None)
    return tuple(sorted(found, key=lambda one: (order.index(one.split), one.path)))


def find_split(
    place: str | os.PathLike[str],
    split: Split | None = None,
    format: AnnotationFormat | None = None,
) -> AnnotationFile:
    """Find the annotation file of one split of a dataset.

    `place` and `format` are as for `find_annotations`; `split` is needed if there are several.

    Raises:
        FileError: As `find_annotations`, or if the split has no file or several.
        AnnotationError, ConfigError: As `find_annotations`, or if `split` is unknown.
    """
    who = "find_split"
    if split is not None:
        check_choice(who, "split", split, get_args(Split))
    found = find_annotations(place, format)
    chosen = found if split is None else [one for one in found if one.split == split]
    if len(chosen) != 1:
        expected = f"one annotation file{f' for {split}' if split else ''} at {place}"
        got = ", ".join(f"{one.path.name} ({one.split or 'no split'})" for one in chosen or found)
        hint = "Name the file." if split else "Name the split."
        raise FileError(message(who, expected, got, hint))
    return chosen[0]


def load_annotations(
    place: str | os.PathLike[str],
    split: Split | None = None,
    format: AnnotationFormat | None = None,
) -> AnnotationSet:
    """Load the annotations of one split of a dataset in any format.

    `place`, `split`, `format` and errors are as for `find_split`; the loader may raise errors too.
    """
    return find_split(place, split, format).load()


def _recognized(
    path: Path, format: AnnotationFormat | None, *, alone: bool
) -> AnnotationFile | None:
    """Return the kind of an annotation file, or None if it is another file or format.

    Unreadable files among others are ignored, as they may be anything.
    """
    try:
        found: Any = _name_and_split(path, format)
    except AnnotationError:
        if alone or path.stem in _JSON_SPLITS:
            raise
        return None
    return AnnotationFile(path, *found) if found and format in (None, found[0]) else None


def _name_and_split(
    path: Path, format: AnnotationFormat | None
) -> tuple[str | None, str | None] | None:
    name, folder = path.name, path.parent
    if match := re.fullmatch(r"charades_sta_(train|test)\.txt", name):
        published = (folder / f"Charades_v1_{match[1]}.csv").exists()
        vslnet = format == "vslnet" or (not published and (folder / "charades.json").exists())
        return "vslnet" if vslnet else "charades-sta", match[1]
    if match := re.fullmatch(r"(train|val|test)_data\.json", name):
        return "didemo", match[1]
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        # The first line suffices; the loader reports damage.
        if format is None and "pred_relevant_windows" in next(text_lines(path), (1, ""))[1]:
            return None  # a submission
        return "moment-jsonl", _split_in(path.stem)
    kind = _json_format(path) if suffix == ".json" else None
    if kind is not None and format == "vslnet":  # where file names indicate the split
        return ("vslnet", _VSLNET_SPLITS[path.stem]) if path.stem in _VSLNET_SPLITS else None
    return kind and (kind, _JSON_SPLITS.get(path.stem.lower(), _split_in(path.stem)))


def _json_format(path: Path) -> Literal["activitynet", "tacos"] | None:
    """Return the format of a JSON file with one record per video, or None."""
    content = read_json(path)
    record = next(iter(content.values()), None) if isinstance(content, dict) else None
    if not isinstance(record, dict) or not {"timestamps", "sentences"} <= record.keys():
        return None
    return "tacos" if "fps" in record else "activitynet"


def _split_in(stem: str) -> str | None:
    words = re.split(r"[^a-z]+", stem.lower())
    named = [split for split in get_args(Split) if split in words]
    return named[0] if len(named) == 1 else None
