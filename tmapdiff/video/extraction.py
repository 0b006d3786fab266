"""Extracting features of one video into memory, or of many into a store."""

import gc
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tmapdiff._core.arrays import features_bytes
from tmapdiff._core.checks import check_int, check_no_address, check_range, message, short
from tmapdiff._core.digests import digest_of_file
from tmapdiff._core.files import list_visible
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.data._reading import reading
from tmapdiff.data._video_ids import by_id, check_video_id, file_name
from tmapdiff.errors import AnnotationError, ArgumentError, FeatureError, FileError, TmapdiffError
from tmapdiff.video.decoding import MAX_FPS, VideoSource, open_video, require_av
from tmapdiff.video.frame_encoder import FrameEncoder, FramePreprocessor, batches
from tmapdiff.video.store_writer import PART, FeatureStoreWriter

# fmt: off
VIDEO_SUFFIXES = (
    ".264", ".265", ".3g2", ".3gp", ".3gp2", ".3gpp", ".amv", ".asf", ".avc", ".avi", ".divx",
    ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ismv", ".ivf", ".m1v", ".m2p",
    ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov", ".mp4",
    ".mp4v", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv",
    ".qt", ".rm", ".rmvb", ".swf", ".tod", ".tp", ".trp", ".ts", ".vob", ".vro", ".webm", ".wmv",
    ".wtv", ".xvid", ".y4m",
)
# fmt: on


@dataclass(frozen=True)
class VideoFeatures:
    """Features of one video.

    Attributes:
        features: One feature per sampled frame.
        seconds_per_feature: Seconds between features.
        duration: Duration of the video in seconds.
        damage: Description of any damage to the video, in one line, or None.

    Shape:
        - features: (T, D) float32

    Raises:
        ArgumentError: If `seconds_per_feature` is not positive, or `duration` is negative.
    """

    features: Tensor
    seconds_per_feature: float
    duration: float
    damage: str | None = None

    def __post_init__(self) -> None:
        who = "VideoFeatures"
        check_range(who, "seconds_per_feature", self.seconds_per_feature, 0, open_low=True)
        check_range(who, "duration", self.duration, 0)


def encode_video(
    source: VideoSource,
    encoder: FrameEncoder,
    *,
    fps: float | Fraction,
    batch_size: int = 32,
    **options: Any,
) -> VideoFeatures:
    """Compute the features of one video.

    Args:
        source: As for `open_video`: a file, its content, or frames.
        encoder: Encoder of the frames.
        fps: Features per second.
        batch_size: Frames per batch.
        **options: As for `open_video`: `frame_rate`, `max_pixels`, ...

    Raises:
        FeatureError: If features are not finite, for example by overflow in half precision.
        SizeLimitError: If `source` is frames and their features would exceed the memory limit.
        TmapdiffError: As `open_video`, `VideoReader.sample` and `FrameEncoder.encode`.

    Example:
        >>> video = encode_video("cooking.mp4", FrameEncoder("vgg16"), fps=2)  # doctest: +SKIP
    """
    with open_video(source, **options) as video:
        frames = video.sample(fps)
        if video.info.codec is None and video.info.duration is not None:
            # With a wrong frame_rate, frames may last a thousand times longer than intended.
            shape = (math.ceil(video.info.duration * fps), encoder.feature_dim)
            check_item_bytes("encode_video", "features of frames", features_bytes(shape, 4))
        images = (frame.image for frame in frames)
        features = encoder.encode(images, batch_size)
        if not features.isfinite().all():
            raise FeatureError(_not_finite("encode_video", encoder))
        duration = video.duration or 0.0
        return VideoFeatures(features, float(1 / Fraction(fps)), duration, video.damage)


@dataclass(frozen=True)
class VideoNote:
    """The `video_id` of a damaged or skipped video, and the `reason` in one line."""

    video_id: str
    reason: str


@dataclass(frozen=True)
class ExtractionReport:
    """Results of `extract_features`.

    Attributes:
        path: The store.
        extracted: Ids of the videos whose features were computed.
        kept: Ids of the videos that were in the store already.
        damaged: Extracted and kept videos of which only a part could be decoded.
        skipped: Videos without features, for example because these are not finite.
        passed_over: Number of other files in the folder, by suffix.
    """

    path: Path
    extracted: tuple[str, ...]
    kept: tuple[str, ...]
    damaged: tuple[VideoNote, ...]
    skipped: tuple[VideoNote, ...]
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {len(self.extracted)} videos extracted, {len(self.kept)} kept, "
            f"{len(self.damaged)} damaged, {len(self.skipped)} skipped"
        ]
        for what, notes in (("damaged", self.damaged), ("skipped", self.skipped)):
            lines += [short(f"{what} {note.video_id}: {note.reason}") for note in notes]
        if self.passed_over:
            lines.append(f"other files by suffix: {list_suffixes(self.passed_over)}")
        return "\n".join(lines)


def extract_features(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Mapping[str, Any],
    encoder: FrameEncoder,
    out: str | os.PathLike[str],
    *,
    fps: float | Fraction,
    batch_size: int = 32,
    num_workers: int = 0,
    skip_damaged: bool = False,
    on_video: Callable[[str], Any] | None = None,
) -> ExtractionReport:
    """Compute the features of many videos into an HDF5 file for `open_feature_store`.

    The file and each dataset have the attributes `model`, `model_sha256`, `fps` and
    `seconds_per_feature`. The file also has `frame_encoder`, the arguments of `FrameEncoder` as
    JSON if known. Datasets also have `duration`, `num_frames`, `source`, `source_size`,
    `source_mtime_ns`, `source_sha256` and, for damaged videos, `damage`.

    A second run resumes after any interruption, adds new videos, recomputes changed ones and
    retries skipped ones.

    Args:
        videos: A folder, whose files with a video suffix are used, except a .gif next to a video of
            the same name; files, whose ids are their names without suffix; or files by id.
        encoder: Encoder of the frames.
        out: HDF5 file to create or extend.
        fps: Features per second.
        batch_size: Frames per batch.
        num_workers: Processes that decode one video each; 0 decodes in this process.
        skip_damaged: Skip damaged videos instead of using the part that can be decoded. Those in
            the file already are kept, and reported.
        on_video: Called with the id of each finished video, for a progress bar.

    Raises:
        FileError: If the folder cannot be read or is a URL, or the file cannot be written or is
            being written by another process.
        FeatureError: If the file has features of another model or rate.
        ArgumentError: If there are no videos, two have the same id, or a number is out of range.
        AnnotationError: If an id is not allowed, such as one with a slash.
        MissingDependencyError: If the extra `video` is not installed.

    Example:
        >>> report = extract_features(  # doctest: +SKIP
        ...     "videos", FrameEncoder("vgg16", device="cuda"), "vgg16.h5", fps=2, num_workers=4
        ... )
    """
    who = "extract_features"
    check_range(who, "fps", fps, 0, MAX_FPS, open_low=True)
    check_int(who, "batch_size", batch_size, at_least=1)
    check_int(who, "num_workers", num_workers, at_least=0)
    if isinstance(videos, str | os.PathLike):
        check_no_address(who, videos)
    paths, passed_over = _videos_by_id(who, videos)
    require_av()
    shared: dict[str, str | float] = {
        "model": encoder.description,
        "model_sha256": encoder.fingerprint,
        "fps": float(fps),
        "seconds_per_feature": float(1 / Fraction(fps)),
    }
    todo: dict[str, Path] = {}
    kept: list[str] = []
    extracted: set[str] = set()
    damaged: dict[str, str] = {}
    skipped: dict[str, str] = {}
    remarks = {} if encoder.arguments is None else {"frame_encoder": json.dumps(encoder.arguments)}
    with FeatureStoreWriter(out, shared, remarks) as store:
        for video_id, path in paths.items():
            try:
                file_name(check_video_id(who, video_id), PART)  # may be too long
                if video_id in store and _is_source(path, store[video_id]):
                    kept.append(video_id)
                    if "damage" in store[video_id]:
                        damaged[video_id] = store[video_id]["damage"]
                else:
                    todo[video_id] = path
            except (AnnotationError, FileError) as error:
                skipped[video_id] = str(error)
        frames = _FrameBatches([*todo.items()], encoder.preprocess, fps, batch_size)
        loader = DataLoader(frames, batch_size=None, num_workers=min(num_workers, len(todo)))
        # Otherwise a forked worker may collect PyAV's garbage, and wait forever for decoder threads
        # that the fork does not have.
        gc.collect()
        features: dict[str, list[Tensor]] = {}  # by video, as each worker decodes another
        for video_id, item in loader:
            if isinstance(item, Tensor):
                features.setdefault(video_id, []).append(encoder(item))
                continue
            parts = features.pop(video_id, [])
            if isinstance(item, str):
                skipped[video_id] = item
            elif not all(one.isfinite().all() for one in parts):
                skipped[video_id] = _not_finite(who, encoder)
            elif "damage" in item and skip_damaged:
                skipped[video_id] = item["damage"]
            else:
                array = torch.cat(parts).numpy()
                store.write(video_id, array, {**item, "num_frames": len(array), **shared})
                extracted.add(video_id)
                if "damage" in item:
                    damaged[video_id] = item["damage"]
            if on_video is not None:
                on_video(video_id)
        store.finish()
    return ExtractionReport(
        path=Path(out),
        extracted=tuple(video_id for video_id in paths if video_id in extracted),
        kept=tuple(kept),
        damaged=_notes(paths, damaged),
        skipped=_notes(paths, skipped),
        passed_over=passed_over,
    )


def _notes(order: Iterable[str], reasons: Mapping[str, str]) -> tuple[VideoNote, ...]:
    return tuple(VideoNote(one, reasons[one]) for one in order if one in reasons)


@dataclass(frozen=True, eq=False)
class _FrameBatches(IterableDataset[tuple[str, Any]]):
    """Yields (id, preprocessed frames) repeatedly, then (id, attributes) or (id, error text)."""

    videos: Sequence[tuple[str, Path]]
    preprocess: FramePreprocessor
    fps: float | Fraction
    batch_size: int

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        # Workers share the cores; a single process may use them all.
        threads = 1 if worker else 0
        for video_id, path in self.videos[first::step]:
            try:
                for item in self._read(path, threads):
                    yield video_id, item
            except TmapdiffError as error:
                yield video_id, str(error)

    def _read(self, path: Path, threads: int) -> Iterator[Tensor | dict[str, Any]]:
        attributes = _source_attributes(path)
        with closing(open_video(path, num_threads=threads)) as video:
            frames = (self.preprocess(frame.image) for frame in video.sample(self.fps))
            for batch in batches(frames, self.batch_size):
                yield torch.stack(batch)
            attributes["duration"] = video.duration
            if video.damage:
                attributes["damage"] = video.damage
            yield attributes


def _not_finite(who: str, encoder: FrameEncoder) -> str:
    return message(who, f"finite features of {encoder.description}", "NaN or infinity")


def find_videos(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """Return the files of a folder with a video suffix, and count the others by suffix."""
    files = [path for path in list_visible(folder) if path.is_file()]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    # A .gif next to a video of the same name is its preview.
    names = {path.stem for path in videos if path.suffix.lower() != ".gif"}
    videos = [path for path in videos if path.suffix.lower() != ".gif" or path.stem not in names]
    others = Counter(path.suffix.lower() for path in set(files).difference(videos))
    return videos, dict(sorted(others.items()))


def list_suffixes(suffixes: Mapping[str, int]) -> str:
    """Word the numbers of files by suffix."""
    return ", ".join(f"{number} {suffix or 'without any'}" for suffix, number in suffixes.items())


def _videos_by_id(who: str, videos: Any) -> tuple[dict[str, Path], dict[str, int]]:
    """Return videos by id, and the number of a folder's other files by suffix."""
    passed_over: dict[str, int] = {}
    if isinstance(videos, Mapping):
        paths = {str(video_id): Path(path) for video_id, path in videos.items()}
    elif isinstance(videos, str | os.PathLike):
        files, passed_over = find_videos(Path(videos))
        if not files:
            got = f"no file with a video suffix in {os.fspath(videos)}"
            got += f", only {list_suffixes(passed_over)}" if passed_over else ""
            raise ArgumentError(message(who, "a folder of videos", got))
        paths = by_id(who, files)
    else:
        paths = by_id(who, map(Path, videos))
    check_int(who, "videos", len(paths), at_least=1)
    return paths, passed_over


def _source_attributes(path: Path) -> dict[str, Any]:
    size, mtime = size_and_time(path)
    return {
        # HDF5 stores only valid UTF-8.
        "source": path.name.encode(errors="backslashreplace").decode(),
        "source_size": size,
        "source_mtime_ns": mtime,
        "source_sha256": _digest(path),
    }


def _is_source(path: Path, attributes: dict[str, Any]) -> bool:
    """Return whether features were computed from this file."""
    size, mtime = size_and_time(path)
    if size != attributes.get("source_size"):
        return False
    # A copy of the file has another time, so compare contents.
    same_time = mtime == attributes.get("source_mtime_ns")
    return same_time or _digest(path) == attributes.get("source_sha256")


def size_and_time(path: Path) -> tuple[int, int]:
    """Return the bytes of a file, and when it changed, in ns; FileError if it is not there."""
    with reading(path):
        status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    with reading(path):
        return digest_of_file(path)
