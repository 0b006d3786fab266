"""Writing a feature store video by video, safe against being killed."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from typing_extensions import Self

from tmapdiff._core.checks import foreign_errors, message, require
from tmapdiff._core.files import SECONDS_OF_ORPHANS, is_hidden, naming_file, sync, written_beside
from tmapdiff.data._hdf5 import find_member, in_place, read_attributes
from tmapdiff.data._reading import json_or_none
from tmapdiff.data._video_ids import (
    check_video_id,
    file_name,
    hdf5_key,
    video_id_of,
    video_id_of_key,
)
from tmapdiff.errors import FeatureError, FileError

Attributes = Mapping[str, str | int | float]
PART = ".npz"
# Attributes that new features would wrongly get from a store if they have none.
_TELLING = ("model", "model_sha256", "fps", "seconds_per_feature", "description")


class FeatureStoreWriter:
    """Writes an HDF5 file for `HDF5FeatureStore`, with one dataset per video and attributes.

    A killed writer would corrupt an HDF5 file. So each video is first written to its own file in
    the folder `{path}.parts`; `finish` merges them with the old HDF5 file into a new one. All files
    are complete at any time, and the next writer resumes. This takes the disk space twice.

    Use it as a context manager, which keeps other writers out by a hidden file `.{name}.lock`.

    Args:
        path: HDF5 file to create or extend.
        attributes: Attributes shared by all features of the file, such as the model.
        remarks: Other attributes of the file, which may change.

    Raises:
        FileError: On entering, if the file cannot be written or read, or another process writes it.
            Later, for example if the disk is full.
        FeatureError: If an attribute is a text of more than 64,000 bytes. On entering, if existing
            features have other `attributes`.
        MissingDependencyError: If h5py is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        attributes: Attributes,
        remarks: Attributes | None = None,
    ) -> None:
        self._h5py: Any = require("h5py", extra="video", purpose="writing HDF5 features")
        self.path = Path(path)
        self.attributes = dict(attributes)
        self.remarks = dict(remarks or {})
        _in_place(self.attributes | self.remarks)
        self.parts = self.path.with_name(f"{self.path.name}.parts")
        lock = self.path.with_name(f".{self.path.name}.lock")
        self._lock = FileLock(lock, timeout=SECONDS_OF_ORPHANS)
        self._written: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        with naming_file(self.parts):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                expected = f"to be the only process that writes {self.path}"
                raise FileError(message("FeatureStoreWriter", expected, "another one")) from None
        try:
            self._take_over()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()

    def __len__(self) -> int:
        return len(self._written)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._written

    def __getitem__(self, video_id: str) -> dict[str, Any]:
        """Return the attributes of a written video."""
        return self._written[video_id]

    def write(self, video_id: str, features: np.ndarray, attributes: Attributes) -> None:
        """Write features of a video, replacing earlier ones, and `attributes` of its dataset.

        Shape:
            - features: (T, D)

        Raises:
            FileError: If they cannot be written.
            AnnotationError: If `video_id` is not allowed, such as one with a slash, or too long.
            FeatureError: If an attribute is a text of more than 64,000 bytes.
        """
        check_video_id("FeatureStoreWriter.write", video_id)
        _in_place(attributes)  # checked here, not only in `finish`
        text: Any = json.dumps(dict(attributes))
        with written_beside(self.parts / file_name(video_id, PART), durable=True) as new:
            np.savez(new, features=features, attributes=text)
        self._written[video_id] = dict(attributes)

    def finish(self) -> None:
        """Merge the written videos into the HDF5 file.

        Raises:
            FileError: If it cannot be written.
        """
        parts = self._parts()
        if not parts:
            return
        whole = self.parts / "whole.h5"
        with written_beside(whole, durable=True) as new:
            if self.path.exists():
                shutil.copyfile(self.path, new)
            with self._h5py.File(new, "a") as file:
                file.attrs.update(_in_place(self.remarks | self.attributes))
                for part in parts:
                    video_id, features, attributes = _read_part(part)
                    key = hdf5_key(video_id)
                    if file.get(key, getlink=True):
                        del file[key]
                    file.create_dataset(key, data=features).attrs.update(_in_place(attributes))
        with naming_file(self.path):
            whole.replace(self.path)
            sync(self.path.parent)
            for part in parts:
                part.unlink()

    def _take_over(self) -> None:
        """Clean up after a killed writer, and read what it wrote."""
        with naming_file(self.parts):
            self.parts.mkdir(exist_ok=True)
        for left in self.parts.glob(".*"):
            if left.is_dir():  # of an unfinished file
                shutil.rmtree(left, ignore_errors=True)
        (self.parts / "whole.h5").unlink(missing_ok=True)
        if self.path.exists():
            self._read_store()
        shared, parts = self.parts / "attributes.json", self._parts()
        if parts and shared.exists():
            found = json_or_none(shared)
            if not isinstance(found, dict):
                hint = f"Remove the folder {self.parts} with its features."
                raise FileError(message(str(shared), "attributes as JSON", "damaged ones", hint))
            check_same(self.path, found, self.attributes)
        else:
            with written_beside(shared) as new:
                new.write_text(json.dumps(self.attributes))
        for part in parts:
            try:
                video_id, _, attributes = _read_part(part)
                self._written[video_id] = attributes
            # Corrupted by a failing disk or machine; NumPy may raise any error.
            except Exception:
                part.unlink()

    def _read_store(self) -> None:
        # On damaged files h5py may raise any error.
        unreadable = foreign_errors(FileError, f"cannot read {self.path} as HDF5")
        with unreadable, self._h5py.File(self.path, "r") as file:
            shared, left_out = read_attributes(str(self.path), file)
            ours = self.attributes.keys() | self.remarks.keys()
            if lost := sorted(ours & set(left_out)):
                expected = f"fixed-length attributes in {self.path}, as this release writes them"
                hint = "Convert it to a new file first: tmapdiff convert OLD NEW."
                raise FeatureError(message("FeatureStoreWriter", expected, lost, hint))
            check_same(self.path, shared, self.attributes)
            for key in file:
                if (member := find_member(f"{self.path}, {key}", file, key)) is not None:
                    self._written[video_id_of_key(key)], _ = read_attributes(key, member)

    def _parts(self) -> list[Path]:
        parts = self.parts.glob(f"*{PART}")
        return sorted(part for part in parts if not is_hidden(part.name))

    def _leave(self) -> None:
        if not self._parts():
            shutil.rmtree(self.parts, ignore_errors=True)
        self._lock.release()


def check_same(place: Path, found: Attributes, new: Attributes) -> None:
    """Raise FeatureError if the attributes of features in `place` do not hold for new ones."""
    for name in dict.fromkeys([*new, *(one for one in _TELLING if one in found)]):
        value = stored = new.get(name)  # as written to HDF5
        if isinstance(value, str):
            stored = value.encode(errors="backslashreplace").decode()
        if found.get(name) not in (value, stored):
            expected = f"the features in {place} to have "
            expected += f"{name} = {value!r}" if name in new else f"no {name}, like the new ones"
            got = repr(found[name]) if name in found else "none"
            hint = "Write the new features to another file or folder."
            if name == "seconds_per_feature" and name not in new:
                hint = f"Pass {name}, or write them elsewhere."
            raise FeatureError(message("FeatureStoreWriter", expected, got, hint))


def _in_place(attributes: Attributes) -> dict[str, Any]:
    return {name: in_place("FeatureStoreWriter", name, one) for name, one in attributes.items()}


def _read_part(path: Path) -> tuple[str, np.ndarray, dict[str, Any]]:
    # Opened here, as NumPy leaves damaged files open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
        attributes = dict(json.loads(part["attributes"].item()))
        return video_id_of(path.name, PART), part["features"], attributes
