"""From one feature store to another of any format."""

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from tmapdiff._core.checks import check_choice, message, short
from tmapdiff._core.files import list_visible, written_beside
from tmapdiff.data import ActionTimelineFeatures, open_feature_store
from tmapdiff.data._video_ids import (
    check_video_id,
    file_name,
    find_file,
    is_shortened,
    is_video_id,
)
from tmapdiff.data.features import ATTRIBUTES, read_attributes
from tmapdiff.errors import AnnotationError, ArgumentError, FeatureError, TmapdiffError
from tmapdiff.video import FeatureStoreWriter, VideoNote

StoreFormat = Literal["hdf5", "npy", "npz", "pt"]
Attributes = Mapping[str, str | int | float]
_HDF5_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_features` did.

    Attributes:
        path: The new store.
        format: Its format.
        converted: Ids of the videos whose features were written.
        kept: Ids of those that were there already.
        skipped: Videos whose features cannot be used, or whose id contains `/` or the like.
    """

    path: Path
    format: StoreFormat
    converted: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[VideoNote, ...]

    def __str__(self) -> str:
        counts = f"{len(self.converted)} videos converted, {len(self.kept)} kept"
        lines = [f"{self.path} ({self.format}): {counts}, {len(self.skipped)} skipped; verified"]
        return "\n".join(
            [*lines, *(short(f"skipped {one.video_id}: {one.reason}") for one in self.skipped)]
        )


def convert_features(
    source: str | os.PathLike[str] | ActionTimelineFeatures,
    target: str | os.PathLike[str],
    *,
    format: StoreFormat | None = None,
    seconds_per_feature: float | None = None,
    on_video: Callable[[str], Any] | None = None,
) -> ConversionReport:
    """Copy all features of a store to one of another format, and read them back.

    Features are written as float32, as stores give them. Attributes, of the store and of each
    video, are kept: by HDF5 files as such, by folders in a file `attributes.json`, which stores
    read. Run again, it goes on where it was interrupted, however hard, and adds what is new.

    Args:
        source: The store, as for `open_feature_store`; or simulated features, which the target
            then says they are.
        target: HDF5 file or folder, to be made or added to.
        format: Format of the target. If None, HDF5 if its name ends with `.h5` or `.hdf5`, else a
            folder of `.npy`.
        seconds_per_feature: As for `open_feature_store`; the target will say it.
        on_video: Called with the id of each video when it is done, for a progress bar.

    Raises:
        FileError: If the source cannot be read or the target cannot be written.
        FeatureError: If the target has other features of a video, or other attributes; or if what
            was written is not what is read back.
        ArgumentError: If source and target are the same, or simulated features are given another
            `seconds_per_feature`.
        ConfigError: If there is no such format.
        MissingDependencyError: If h5py is needed and not installed.
    """
    who = "convert_features"
    path = Path(target)
    store: Any
    if isinstance(source, ActionTimelineFeatures):
        store = source
        if seconds_per_feature not in (None, store.seconds_per_feature):
            expected = f"seconds_per_feature = {store.seconds_per_feature}, as it simulates"
            raise ArgumentError(message(who, expected, seconds_per_feature))
    elif path.exists() and path.samefile(source):
        raise ArgumentError(message(who, "two stores", f"{path} twice"))
    else:
        store = open_feature_store(source, seconds_per_feature)
    if format is None:
        format = "hdf5" if path.suffix.lower() in _HDF5_SUFFIXES else "npy"
    check_choice(who, "format", format, get_args(StoreFormat))
    attributes = dict(store.attributes)
    if store.seconds_per_feature is not None:
        attributes["seconds_per_feature"] = store.seconds_per_feature
    videos = store.video_ids
    said = {one: _simple(store.attributes_of(one)) for one in videos if is_video_id(one)}
    converted: list[str] = []
    kept: list[str] = []
    skipped: list[VideoNote] = []
    with ExitStack() as stack:
        writer: FeatureStoreWriter | _FolderWriter
        if format == "hdf5":
            writer = stack.enter_context(FeatureStoreWriter(path, _simple(attributes)))
        else:
            writer = _FolderWriter(path, _simple(attributes), f".{format}")
            writer.describe(said)
        for video_id in videos:
            try:
                check_video_id(f"{who}, {store.description}", video_id)
                if video_id in writer:
                    kept.append(video_id)
                else:
                    writer.write(video_id, store[video_id].numpy(), said[video_id])
                    converted.append(video_id)
            except (FeatureError, AnnotationError) as error:
                skipped.append(VideoNote(video_id, str(error)))
            if on_video is not None:
                on_video(video_id)
        writer.finish()
    if converted or kept:
        _verify(store, path, (*converted, *kept))
    return ConversionReport(path, format, tuple(converted), tuple(kept), tuple(skipped))


def _verify(store: Any, path: Path, videos: tuple[str, ...]) -> None:
    """Compare what was written, or was there, with the source."""
    written: Any = open_feature_store(path)
    if written.seconds_per_feature != store.seconds_per_feature:
        expected = f"{written.description} to say {store.seconds_per_feature} s a feature"
        raise FeatureError(message("convert_features", expected, written.seconds_per_feature))
    for video_id in videos:
        try:
            same = torch.equal(written[video_id], store[video_id])
            found = "others"
        except TmapdiffError as error:
            same, found = False, str(error).rstrip(".")
        if not same:
            expected = f"the features of {video_id!r} in {path} to be those of {store.description}"
            hint = "Remove it, or choose another place, and convert again."
            raise FeatureError(message("convert_features", expected, found, hint))


class _FolderWriter:
    """Fills a folder with a file a video, and `attributes.json`."""

    def __init__(self, folder: Path, attributes: Attributes, suffix: str) -> None:
        self.folder = folder
        self.suffix = suffix
        files = list_visible(folder) if folder.is_dir() else ()
        others = {file.suffix for file in files} & {".npy", ".npz", ".pt"} - {suffix}
        if others:
            expected = f"no features but {suffix} files in {folder}"
            raise FeatureError(message("convert_features", expected, ", ".join(sorted(others))))
        for left in folder.glob(f".*{suffix}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        self.stated = read_attributes(folder)
        for name, value in attributes.items():
            said = self.stated["attributes"].setdefault(name, value)
            if said != value:
                expected = f"the features in {folder} to have {name} = {value!r}, as new ones"
                hint = "Use another folder for these."
                raise FeatureError(message("convert_features", expected, repr(said), hint))

    def __contains__(self, video_id: str) -> bool:
        return find_file(self.folder, video_id, self.suffix) is not None

    def describe(self, videos: Mapping[str, Attributes]) -> None:
        """Say of each video what is known, before its features are there: then it is not lost."""
        self.stated["videos"] |= {
            video_id: dict(said)
            for video_id, said in videos.items()
            if said or is_shortened(file_name(video_id, self.suffix))
        }
        if any(self.stated.values()):
            with written_beside(self.folder / ATTRIBUTES) as new:
                text = json.dumps(self.stated, indent=1, ensure_ascii=False)
                # A name of a file that is no UTF-8 becomes an escape, which JSON knows.
                new.write_bytes(text.encode(errors="backslashreplace"))

    def write(self, video_id: str, features: np.ndarray, attributes: Attributes) -> None:
        with written_beside(self.folder / file_name(video_id, self.suffix)) as new:
            new.write_bytes(_content(features, self.suffix))

    def finish(self) -> None:
        pass


def _simple(attributes: Mapping[str, Any]) -> Attributes:
    """Bring attributes into a form that HDF5 and JSON hold alike."""
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in attributes.items()
    }


def _content(features: np.ndarray, suffix: str) -> bytes:
    # In memory first: on a full disk NumPy and torch have errors of their own.
    buffer = io.BytesIO()
    if suffix == ".pt":
        torch.save(torch.from_numpy(features), buffer)
    elif suffix == ".npz":
        np.savez(buffer, features=features)
    else:
        np.save(buffer, features)
    return buffer.getvalue()
