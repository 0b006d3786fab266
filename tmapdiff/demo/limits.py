"""Limits of the demo, checked before frames are decoded if possible."""

import os
from dataclasses import dataclass
from pathlib import Path

from tmapdiff._core.checks import check_int, check_range, message, require
from tmapdiff.data.text_tracks import Cue, load_text_track
from tmapdiff.errors import FileError, VideoError
from tmapdiff.video import VideoInfo, probe_video


@dataclass(frozen=True)
class DemoLimits:
    """Limits of the demo, so that one visitor cannot block the others.

    Args:
        max_megabytes: Largest file, in MB.
        max_seconds: Longest video, in seconds.
        max_track_seconds: Longest text track, in seconds.
        max_pixels: Largest number of pixels per frame.
        max_steps: Largest number of denoising steps.
        max_samples: Largest number of samples.
        max_waiting: Largest number of visitors in the queue; one is served at a time.
        max_total_megabytes: Size of all visitors' files, in MB. Defaults to 10 * `max_megabytes`.

    Raises:
        ArgumentError: If a number is not positive, or `max_total_megabytes` is less than
            `max_megabytes`.
    """

    max_megabytes: float = 200.0
    max_seconds: float = 600.0
    max_pixels: int = 3840 * 2160
    max_steps: int = 20
    max_samples: int = 16
    max_waiting: int = 16
    max_total_megabytes: float | None = None
    max_track_seconds: float = 14_400.0

    def __post_init__(self) -> None:
        for name in ("max_megabytes", "max_seconds", "max_track_seconds"):
            check_range("DemoLimits", name, getattr(self, name), 0, open_low=True)
        if self.max_total_megabytes is not None:
            least = self.max_megabytes
            check_range("DemoLimits", "max_total_megabytes", self.max_total_megabytes, least)
        for name in ("max_pixels", "max_steps", "max_samples", "max_waiting"):
            check_int("DemoLimits", name, getattr(self, name), at_least=1)

    @property
    def max_bytes(self) -> int:
        """Size of the largest file in bytes."""
        return int(self.max_megabytes * 1_000_000)

    @property
    def max_total_bytes(self) -> int:
        """Total size of all files in bytes."""
        total = self.max_total_megabytes
        return 10 * self.max_bytes if total is None else int(total * 1_000_000)

    def check(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Check a video against the limits, and return its properties.

        Only the first frame is decoded, but all timestamps are read, as declared durations may be
        wrong or missing.

        Args:
            path: File of the video.

        Raises:
            FileError: If the file cannot be read.
            VideoError: If it is not a video, or exceeds a limit.
            MissingDependencyError: If the extra `video` is not installed.
        """
        name = self._check_size(path)
        info = probe_video(path, max_pixels=self.max_pixels)
        if not info.has_video:
            raise VideoError(message(name, "a video", "a file without frames"))
        seconds = info.duration or 0.0
        if seconds <= self.max_seconds:
            seconds = max(seconds, _last_timestamp(path))
        _check_length(name, "video", seconds, self.max_seconds)
        return info

    def check_track(self, path: str | os.PathLike[str]) -> tuple[Cue, ...]:
        """Check a text track against the limits, and return its cues.

        Args:
            path: File of the track.

        Raises:
            FileError, AnnotationError, ConfigError: As `load_text_track`.
            VideoError: If it exceeds a limit.
        """
        name = self._check_size(path)
        cues = load_text_track(path)
        _check_length(name, "text track", max(cue.end for cue in cues), self.max_track_seconds)
        return cues

    def _check_size(self, path: str | os.PathLike[str]) -> str:
        name = Path(path).name
        try:
            size = Path(path).stat().st_size
        except OSError as error:
            raise FileError(message(name, "a file", error.strerror or "none")) from error
        if size > self.max_bytes:
            expected = f"a file of at most {self.max_megabytes:g} MB"
            raise VideoError(message(name, expected, f"{size / 1_000_000:.1f} MB"))
        return name


def _check_length(name: str, kind: str, seconds: float, most: float) -> None:
    if seconds > most:
        hint = "Cut it to the part you need."
        expected = f"a {kind} of at most {_in_words(most)}"
        raise VideoError(message(name, expected, _in_words(seconds), hint))


def _last_timestamp(path: str | os.PathLike[str]) -> float:
    """Return the seconds from the first to the last frame, without decoding."""
    av = require("av", extra="video", purpose="reading videos")
    first, last = float("inf"), 0.0
    try:
        with av.open(os.fspath(path), metadata_errors="replace") as file:
            stream = file.streams.best("video")
            for packet in file.demux(stream):
                if packet.pts is not None:
                    time = float(packet.pts * packet.time_base)
                    first, last = min(first, time), max(last, time)
    except (av.error.FFmpegError, OSError, ValueError):
        pass  # in a damaged file, only the part before the damage counts
    return max(0.0, last - first) if first < float("inf") else 0.0


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
