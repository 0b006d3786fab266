"""Conversion between feature stores of any format."""

import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from tmapdiff._core.checks import check_choice, message, short
from tmapdiff._core.files import list_visible, written_beside
from tmapdiff.data import ActionTimelineFeatures, HDF5FeatureStore, open_feature_store
from tmapdiff.data._hdf5 import HDF5_SUFFIXES
from tmapdiff.data._video_ids import check_video_id, file_name, find_file, is_video_id
from tmapdiff.data.features import ATTRIBUTES, read_folder_attributes
from tmapdiff.errors import AnnotationError, ArgumentError, FeatureError, FileError, TmapdiffError
from tmapdiff.video import FeatureStoreWriter, VideoNote
from tmapdiff.video.store_writer import Attributes, check_same

StoreFormat = Literal["hdf5", "npy", "npz", "pt"]


@dataclass(frozen=True)
class ConversionReport:
    """The new store at `path` in a `format`, and what became of the videos.

    The features of `converted` were written, and those of `kept` existed; `skipped` have unusable
    features, or an id that contains `/` or the like.
    """

    path: Path
    format: StoreFormat
    converted: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[VideoNote, ...]

    def __str__(self) -> str:
        counts = f"{len(self.converted)} videos converted, {len(self.kept)} kept"
        lines = [f"{self.path} ({self.format}): {counts}, {len(self.skipped)} skipped; verified"]
        lines += [short(f"skipped {note.video_id}: {note.reason}") for note in self.skipped]
        return "\n".join(lines)


def convert_features(
    source: str | os.PathLike[str] | ActionTimelineFeatures,
    target: str | os.PathLike[str],
    *,
    format: StoreFormat | None = None,
    seconds_per_feature: float | None = None,
    on_video: Callable[[str], Any] | None = None,
) -> ConversionReport:
    """Copy all features of a store to another format, and verify the copy.

    Features are written as float32. Attributes of the store and of each video are kept: as HDF5
    attributes, or in a file `attributes.json` in a folder. Run again, it resumes after any
    interruption, and adds new videos.

    Variable-length attributes of HDF5 files, which stores omit with a warning, are copied too.
    Damage in them can hang HDF5.

    Args:
        source: The store, as for `open_feature_store`; or simulated features, which the target then
            declares as simulated.
        target: HDF5 file or folder, new or existing.
        format: Format of the target. Defaults to HDF5 if its name ends with `.h5` or `.hdf5`,
            otherwise to a folder of `.npy` files.
        seconds_per_feature: As for `open_feature_store`; the target will declare it.
        on_video: Called with the id of each finished video, for a progress bar.

    Raises:
        FileError: If the source cannot be read or the target cannot be written.
        FeatureError: If the target has other features for a video, other attributes or features of
            another width; or if the features read back differ from the source.
        ArgumentError: If source and target are the same, or `seconds_per_feature` differs from that
            of simulated features.
        ConfigError: If there is no such format.
        MissingDependencyError: If h5py is needed and not installed.
    """
    who = "convert_features"
    path = Path(target)
    store: Any = source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about omitted attributes, which are recovered below
        if not isinstance(source, ActionTimelineFeatures):
            if path.exists() and path.samefile(source):
                raise ArgumentError(message(who, "source and target to differ", f"{path} twice"))
            store = open_feature_store(source, seconds_per_feature)
        elif seconds_per_feature not in (None, source.seconds_per_feature):
            expected = f"seconds_per_feature = {source.seconds_per_feature}, as simulated"
            raise ArgumentError(message(who, expected, seconds_per_feature))
        with suppress(FileError):  # such as for a new target
            if (width := open_feature_store(path).feature_dim) != store.feature_dim:
                expected = f"features of width {width}, like those in {path}"
                hint = "Write them to another file or folder."
                raise FeatureError(message(who, expected, store.feature_dim, hint))
    if format is None:
        format = "hdf5" if path.suffix.lower() in HDF5_SUFFIXES else "npy"
    check_choice(who, "format", format, get_args(StoreFormat))
    if isinstance(store, HDF5FeatureStore):
        attributes, of_videos = store.recover_attributes()
    else:
        attributes, videos = dict(store.attributes), filter(is_video_id, store.video_ids)
        of_videos = {video_id: store.attributes_of(video_id) for video_id in videos}
    if store.seconds_per_feature is not None:
        attributes["seconds_per_feature"] = store.seconds_per_feature
    simple = {video_id: _simple(found) for video_id, found in of_videos.items()}
    writer: FeatureStoreWriter | _FolderWriter
    if format == "hdf5":
        writer = FeatureStoreWriter(path, _simple(attributes))
    else:
        writer = _FolderWriter(path, f".{format}", _simple(attributes), simple)
    converted: list[str] = []
    kept: list[str] = []
    skipped: list[VideoNote] = []
    with writer if isinstance(writer, FeatureStoreWriter) else nullcontext():
        for video_id in store.video_ids:
            try:
                check_video_id(f"{who}, {store.description}", video_id)
                if video_id in writer:
                    kept.append(video_id)
                else:
                    writer.write(video_id, store[video_id].numpy(), simple[video_id])
                    converted.append(video_id)
            except (FeatureError, AnnotationError) as error:
                skipped.append(VideoNote(video_id, str(error)))
            if on_video is not None:
                on_video(video_id)
        if isinstance(writer, FeatureStoreWriter):
            writer.finish()
    if converted or kept:
        _verify(store, path, (*converted, *kept))
    return ConversionReport(path, format, tuple(converted), tuple(kept), tuple(skipped))


def _verify(store: Any, path: Path, videos: tuple[str, ...]) -> None:
    """Compare new and existing features of the target with the source."""
    written: Any = open_feature_store(path)
    if written.seconds_per_feature != store.seconds_per_feature:
        expected = f"{written.description} to declare {store.seconds_per_feature} s per feature"
        raise FeatureError(message("convert_features", expected, written.seconds_per_feature))
    for video_id in videos:
        try:
            same = torch.equal(written[video_id], store[video_id])
            found = "different ones"
        except TmapdiffError as error:
            same, found = False, str(error).rstrip(".")
        if not same:
            expected = f"the features of {video_id!r} in {path} to be those of {store.description}"
            hint = "Remove it, or choose another place, and convert again."
            raise FeatureError(message("convert_features", expected, found, hint))


class _FolderWriter:
    """Fills a folder with one file per video, and `attributes.json`.

    Attributes of videos are written before their features, so that an interruption loses none.
    """

    def __init__(
        self, folder: Path, suffix: str, attributes: Attributes, videos: Mapping[str, Attributes]
    ) -> None:
        self.folder = folder
        self.suffix = suffix
        files = list_visible(folder) if folder.is_dir() else ()
        others = {file.suffix for file in files} & {".npy", ".npz", ".pt"} - {suffix}
        if others:
            expected = f"only {suffix} features in {folder}"
            raise FeatureError(message("convert_features", expected, ", ".join(sorted(others))))
        for left in folder.glob(f".*{suffix}.*"):  # left by a killed process
            shutil.rmtree(left, ignore_errors=True)
        stated = read_folder_attributes(folder)
        if any(file.suffix == suffix for file in files):
            check_same(folder, stated["attributes"], attributes)
        stated["attributes"] |= attributes
        stated["videos"] |= {video_id: dict(found) for video_id, found in videos.items() if found}
        if any(stated.values()):
            with written_beside(folder / ATTRIBUTES) as new:
                text = json.dumps(stated, indent=1, ensure_ascii=False)
                # File names that are not UTF-8 become escapes, which JSON supports.
                new.write_bytes(text.encode(errors="backslashreplace"))

    def __contains__(self, video_id: str) -> bool:
        return find_file(self.folder, video_id, self.suffix) is not None

    def write(self, video_id: str, features: np.ndarray, attributes: Attributes) -> None:
        # In memory first, as NumPy and torch raise their own errors when the disk is full.
        buffer = io.BytesIO()
        if self.suffix == ".pt":
            torch.save(torch.from_numpy(features), buffer)
        elif self.suffix == ".npz":
            np.savez(buffer, features=features)
        else:
            np.save(buffer, features)
        with written_beside(self.folder / file_name(video_id, self.suffix)) as new:
            new.write_bytes(buffer.getvalue())


def _simple(attributes: Mapping[str, Any]) -> Attributes:
    """Convert attributes to values that both HDF5 and JSON can store."""
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in attributes.items()
    }
