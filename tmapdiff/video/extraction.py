"""Features of one video in memory, or of many videos in a store."""

import gc
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tmapdiff._core.arrays import features_bytes
from tmapdiff._core.checks import check_int, check_no_address, check_range, message, require, short
from tmapdiff._core.files import list_visible
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.data._reading import reading
from tmapdiff.data._video_ids import check_video_id
from tmapdiff.errors import AnnotationError, ArgumentError, FeatureError, FileError, TmapdiffError
from tmapdiff.video.decoding import MAX_FPS, VideoSource, open_video, require_av
from tmapdiff.video.frame_encoder import FrameEncoder, Preprocessor, batches
from tmapdiff.video.store_writer import FeatureStoreWriter

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
        features: One per piece of the video.
        seconds_per_feature: Seconds from one feature to the next.
        duration: Seconds the video lasts.
        damage: What was wrong with the video, in a line; None if nothing is known to be.

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
        encoder: Computes features from images.
        fps: Features per second.
        batch_size: Images at a time.
        **options: As for `open_video`: `frame_rate`, `max_pixels`, ...

    Raises:
        FeatureError: If the features are not finite: in half precision a model can overflow.
        SizeLimitError: If `source` is frames whose features take more memory than an item may.
        TmapdiffError: As `open_video`, `VideoReader.sample` and `FrameEncoder.encode`.

    Example:
        >>> video = encode_video("cooking.mp4", FrameEncoder("vgg16"), fps=2)  # doctest: +SKIP
        >>> clips = pool_features(  # doctest: +SKIP
        ...     video.features,
        ...     16,
        ...     duration=video.duration,
        ...     seconds_per_feature=video.seconds_per_feature,
        ... )
    """
    with open_video(source, **options) as video:
        frames = video.sample(fps)
        if video.info.codec is None and video.info.duration is not None:
            # How long frames last is the caller's word, and may be out by a thousand.
            shape = (math.ceil(video.info.duration * fps), encoder.feature_dim)
            check_item_bytes("encode_video", "features of frames", features_bytes(shape, 4))
        images = (frame.image for frame in frames)
        features = encoder.encode(images, batch_size)
        if not features.isfinite().all():
            raise FeatureError(_not_finite("encode_video", encoder))
        duration = video.duration or 0.0
        return VideoFeatures(features, _seconds_per_feature(fps), duration, video.damage)


@dataclass(frozen=True)
class VideoNote:
    """A remark on one video.

    Attributes:
        video_id: The video.
        reason: The remark, in one line.
    """

    video_id: str
    reason: str


@dataclass(frozen=True)
class ExtractionReport:
    """What `extract_features` did.

    Attributes:
        path: The store.
        extracted: Ids of the videos whose features were computed.
        kept: Ids of those that were in the store already.
        damaged: Those of `extracted` whose features are only of what could be decoded.
        skipped: Videos without features, and why; also those whose features are not finite.
        passed_over: How many other files the folder has, by suffix.
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
            others = list_suffixes(self.passed_over)
            lines.append(f"passed over, as no videos by their suffixes: {others}")
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
    show_progress: bool = True,
) -> ExtractionReport:
    """Compute the features of many videos, into one HDF5 file for `open_feature_store`.

    The file and each dataset have the attributes `model`, `model_sha256`, `fps` and
    `seconds_per_feature`; the file also `frame_encoder`, the arguments of `FrameEncoder` as JSON if
    known; a dataset also `duration`, `num_frames`, `source`, `source_size`, `source_mtime_ns`,
    `source_sha256` and, of a damaged video, `damage`.

    Run again, it resumes after any interruption, adds what is new, computes again what has changed,
    and tries again what was skipped.

    Args:
        videos: A folder, of which all files with a video's suffix count, but no .gif beside a video
            of its name; files, whose ids are their names without suffix; or a mapping from ids.
        encoder: Computes features from images.
        out: The HDF5 file, to be made or added to.
        fps: Features per second.
        batch_size: Images at a time.
        num_workers: Processes that decode, a video each; 0 decodes in this one.
        skip_damaged: Whether to leave out damaged videos instead of keeping what can be decoded.
        show_progress: Whether to show a progress bar on a terminal.

    Raises:
        FileError: If the folder cannot be read or is an address, or the file cannot be written or
            is being written by another process.
        FeatureError: If the file has features of another model or rate.
        ArgumentError: If there are no videos, two have one id, or a number is out of range.
        AnnotationError: If an id cannot be one, such as one with a slash.
        MissingDependencyError: If the extra `video` is not installed.

    Example:
        >>> report = extract_features(  # doctest: +SKIP
        ...     "videos", FrameEncoder("vgg16", device="cuda"), "vgg16.h5", fps=2, num_workers=4
        ... )
        >>> print(report)  # doctest: +SKIP
        vgg16.h5: 8 videos extracted, 0 kept, 0 damaged, 1 skipped
        skipped AO8RW: videos/AO8RW.mp4: expected a video, got an empty file.
    """
    who = "extract_features"
    check_range(who, "fps", fps, 0, MAX_FPS, open_low=True)
    check_int(who, "batch_size", batch_size, at_least=1)
    check_int(who, "num_workers", num_workers, at_least=0)
    if isinstance(videos, str | os.PathLike):
        check_no_address(who, videos)
    paths, passed_over = videos_by_id(who, videos)
    require_av()
    shared: dict[str, str | float] = {
        "model": encoder.description,
        "model_sha256": encoder.fingerprint,
        "fps": float(fps),
        "seconds_per_feature": _seconds_per_feature(fps),
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
                check_video_id(who, video_id)
                if video_id in store and _is_source(path, store[video_id]):
                    kept.append(video_id)
                else:
                    todo[video_id] = path
            except (AnnotationError, FileError) as error:
                skipped[video_id] = str(error)
        frames = _FrameBatches(tuple(todo.items()), encoder.preprocess, fps, batch_size)
        loader = DataLoader(frames, batch_size=None, num_workers=min(num_workers, len(todo)))
        # Garbage of PyAV that a forked worker collects would wait for ever for its decoder's
        # threads, which are not in the fork.
        gc.collect()
        progress: Any = require("rich.progress", extra="video", purpose=who)
        bar = progress.Progress(
            "{task.description}",
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            "videos",
            "{task.fields[count]} frames",
            progress.TimeRemainingColumn(),
            transient=True,
        )
        # Off a terminal, rich would print the bar's last state into the log; before 14.3, even
        # disabled, an empty line.
        bar.disable = not (show_progress and bar.console.is_terminal)
        task, num_frames = bar.add_task("extracting", total=len(todo), count=0), 0
        with nullcontext() if bar.disable else bar:
            features: dict[str, list[Tensor]] = {}  # by video: each worker is at one
            for video_id, item in loader:
                if isinstance(item, Tensor):
                    features.setdefault(video_id, []).append(encoder(item))
                    num_frames += len(item)
                    bar.update(task, count=num_frames)
                    continue
                bar.advance(task)
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


class _FrameBatches(IterableDataset[tuple[str, Any]]):
    """Preprocessed frames of videos, in batches of one video.

    Gives (id, frames) any number of times, then (id, attributes) or (id, why it failed).
    """

    def __init__(
        self,
        videos: tuple[tuple[str, Path], ...],
        preprocess: Preprocessor,
        fps: float | Fraction,
        batch_size: int,
    ) -> None:
        self.videos = videos
        self.preprocess = preprocess
        self.fps = fps
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        # Workers share the processors among them; alone, decoding may use them all.
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


def _seconds_per_feature(fps: float | Fraction) -> float:
    return float(1 / Fraction(fps))


def find_videos(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """Return the videos of a folder, by suffix, and how many other files it has of each suffix."""
    files = [path for path in list_visible(folder) if path.is_file()]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    # A .gif beside a video of its name is its preview.
    names = {path.stem for path in videos if path.suffix.lower() != ".gif"}
    videos = [path for path in videos if path.suffix.lower() != ".gif" or path.stem not in names]
    others = Counter(path.suffix.lower() for path in set(files).difference(videos))
    return videos, dict(sorted(others.items()))


def list_suffixes(suffixes: Mapping[str, int]) -> str:
    """Say how many files there are of each suffix."""
    return ", ".join(f"{number} {suffix or 'without any'}" for suffix, number in suffixes.items())


def videos_by_id(who: str, videos: Any) -> tuple[dict[str, Path], dict[str, int]]:
    """Return the videos of a folder, a list or a mapping by id, and the other files by suffix."""
    passed_over: dict[str, int] = {}
    if isinstance(videos, str | os.PathLike):
        folder = Path(videos)
        files, passed_over = find_videos(folder)
        if not files:
            got = f"no file with such a suffix in {folder}"
            got += f", but {list_suffixes(passed_over)}" if passed_over else ""
            raise ArgumentError(message(who, "a folder of videos", got))
    elif isinstance(videos, Mapping):
        paths = {str(video_id): Path(path) for video_id, path in videos.items()}
        check_int(who, "videos", len(paths), at_least=1)
        return paths, passed_over
    else:
        files = [Path(path) for path in videos]
        check_int(who, "videos", len(files), at_least=1)
    paths = {}
    for path in files:
        if path.stem in paths:
            hint = "Pass a mapping from ids to files."
            got = f"{paths[path.stem]} and {path}"
            raise ArgumentError(message(who, "one video an id", got, hint))
        paths[path.stem] = path
    return paths, passed_over


def _source_attributes(path: Path) -> dict[str, Any]:
    size, mtime = _size_and_time(path)
    return {
        # HDF5 holds no name that is no UTF-8.
        "source": path.name.encode(errors="backslashreplace").decode(),
        "source_size": size,
        "source_mtime_ns": mtime,
        "source_sha256": _digest(path),
    }


def _is_source(path: Path, attributes: dict[str, Any]) -> bool:
    """Whether a file is the one that features were made of."""
    size, mtime = _size_and_time(path)
    if size != attributes.get("source_size"):
        return False
    # A copy has another time.
    same_time = mtime == attributes.get("source_mtime_ns")
    return same_time or _digest(path) == attributes.get("source_sha256")


def _size_and_time(path: Path) -> tuple[int, int]:
    check_no_address("extract_features", path)
    with reading(path):
        status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
