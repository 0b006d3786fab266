"""Recognizing and inspecting a file or folder."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tmapdiff._core.checks import check_no_address, message
from tmapdiff._core.files import list_visible
from tmapdiff.data import AnnotationFormat, find_annotations
from tmapdiff.data._hdf5 import is_hdf5
from tmapdiff.data._reading import reading
from tmapdiff.errors import FileError, TmapdiffError
from tmapdiff.inspection.annotations import inspect_annotations
from tmapdiff.inspection.comparison import compare
from tmapdiff.inspection.report import Inspection, Kind

_TEXTS = {".json", ".jsonl", ".txt", ".csv"}
_STORES = (".npy", ".npz", ".pt")


def inspect(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    format: AnnotationFormat | None = None,
    seconds_per_feature: float | None = None,
    on_item: Callable[[], Any] = lambda: None,
) -> Inspection:
    """Summarize a file or folder, and find problems in it.

    Reads every feature, video frame and weight.

    Args:
        path: Annotations (a file, or the folder of a dataset), a feature store, a video or a folder
            of videos, or a saved pipeline.
        against: Another such place, to check that both fit together: the same ids, features and
            moments within the videos, features that the pipeline takes.
        format: Format of the annotations. Defaults to the one of their names and contents.
        seconds_per_feature: As for `open_feature_store`.
        on_item: Called before each video is read, for a progress bar.

    Raises:
        FileError: If a path does not exist, is not recognized or is a URL.
        ArgumentError: If the two places cannot be compared.
        TmapdiffError: If annotations, a store or a pipeline cannot be opened.
    """

    # Imported per kind, as only features and videos need torch, and only pipelines the models.
    def look(place: Path) -> tuple[Inspection, Any]:
        kind = _kind(place, format)
        if kind == "annotations":
            return inspect_annotations(place, format)
        if kind == "features":
            from tmapdiff.inspection.features import inspect_features

            return inspect_features(place, seconds_per_feature, on_item)
        if kind == "videos":
            from tmapdiff.inspection.videos import inspect_videos

            return inspect_videos(place, on_item)
        from tmapdiff.inspection.pipelines import inspect_pipeline

        return inspect_pipeline(place)

    found, content = look(Path(path))
    if against is None:
        return found
    other, other_content = look(Path(against))
    findings = compare((found.kind, other.kind), (content, other_content))
    return replace(found, findings=(*found.findings, *findings))


def _kind(path: Path, format: AnnotationFormat | None) -> Kind:
    if format is not None:
        return "annotations"
    check_no_address("inspect", path)
    with reading(path):
        is_folder, is_file = path.is_dir(), path.is_file()
    names = [one.name for one in list_visible(path)] if is_folder else [path.name]
    suffixes = {Path(name).suffix.lower() for name in names}
    if is_folder and "model_index.json" in names:
        return "pipeline"
    if (is_folder and suffixes & set(_STORES)) or (is_file and is_hdf5(path)):
        return "features"
    videos: set[str] = set()
    if suffixes - _TEXTS:
        from tmapdiff.video.extraction import VIDEO_SUFFIXES

        videos = suffixes & set(VIDEO_SUFFIXES)
    if videos - {".gif"}:
        return "videos"
    try:
        find_annotations(path)
    except TmapdiffError as error:
        if not path.exists():
            raise FileError(message("inspect", f"something at {path}", "nothing")) from None
        if videos or (is_file and _is_video(path)):
            return "videos"
        expected = f"annotations, a feature store, videos or a pipeline at {path}"
        got = ", ".join(names[:5]) or "an empty folder"
        # Add the loader's error if the file is almost one of annotations.
        hint = str(error) if str(error).startswith(str(path)) else ""
        raise FileError(message("inspect", expected, got, hint)) from error
    return "annotations"


def _is_video(path: Path) -> bool:
    from tmapdiff.video import probe_video

    try:
        return probe_video(path).has_video
    except TmapdiffError:
        return False
