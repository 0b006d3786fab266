"""Decoding videos and sampling frames at chosen times."""

import heapq
import io
import math
import os
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from torch import Tensor
from typing_extensions import Self

from tmapdiff._core.checks import (
    check_int,
    check_no_address,
    check_range,
    first_line,
    foreign_errors,
    message,
    require,
)
from tmapdiff._core.numbers import parse_number
from tmapdiff.errors import ArgumentError, FileError, NoVideoStreamError, VideoError
from tmapdiff.video.timeline import LONGEST, Timeline, Timestamps

_File = str | os.PathLike[str] | bytes | BinaryIO
VideoSource = _File | np.ndarray | Tensor
MAX_FPS = 1000  # samples per second; more would only repeat frames
MAX_PIXELS = 8192 * 8192  # per frame; 200 MB as RGB


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, known once its first frame is decoded.

    Time 0 is the start of the first frame or sound, whichever is earlier.

    Attributes:
        has_video: Whether there are frames. If not, all else is None.
        duration: Declared end of the last frame in seconds, or None.
        frame_rate: Declared mean number of frames per second, or None.
        width: Pixels per row as shown: after rotation, with rows rescaled if stored pixels deviate
            from squares by more than 2 %.
        height: Rows as shown.
        rotation: Degrees clockwise from stored to shown: 0, 90, 180 or 270. Mirrored frames are
            first mirrored left to right.
        codec: Name of the codec; None for arrays.
        start: Time of the first frame in seconds.
    """

    has_video: bool
    duration: float | None = None
    frame_rate: float | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    codec: str | None = None
    start: float | None = None


@dataclass(frozen=True)
class SampledFrame:
    """An image, and when it is shown.

    Attributes:
        time: Requested time in seconds.
        shown_from: Start of its display in seconds; later than `time` only before the first frame.
        image: RGB. Samples of one frame share it, so do not change it in place.

    Shape:
        - image: (height, width, 3) uint8
    """

    time: float
    shown_from: float
    image: np.ndarray


class VideoReader:
    """A video opened by `open_video`, to be read once from its start.

    Args:
        who: Name of the video in messages.

    Attributes:
        info: Its properties.
        duration: End of the last decoded frame in seconds; None until all are read.
        damage: Description of any damage found so far, in one line, or None.
    """

    def __init__(self, who: str, info: VideoInfo) -> None:
        self._who = who
        self._begun = self._closed = False
        self.info = info
        self.duration: float | None = None
        self.damage: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the video; a file object passed to `open_video` stays open."""
        self._closed = True

    def sample(self, fps: float | Fraction) -> Iterator[SampledFrame]:
        """Yield the frames shown at evenly spaced times.

        Sample i is the frame at `(i + 0.5) / fps` seconds, the middle of a piece of `1 / fps`, as
        in `pool_features`. The last piece counts if at least half of it exists. A video shorter
        than half a piece yields its last frame.

        The first frame is used before its time, and the previous one for a frame that cannot be
        decoded. Where timestamps go back (as in joined files) or jump, the next frame directly
        follows the previous one. A jump is a gap above ten seconds where clocks may restart
        (MPEG-TS, MPEG-PS, Ogg), and elsewhere above the declared duration or an hour. It is damage.

        Args:
            fps: Samples per second.

        Raises:
            ArgumentError: If `fps` is not positive, or above 1000.
            VideoError: If the video was sampled before. While iterating: if it was closed, its
                first frame starts after an hour, or a frame is too large or cannot be converted.
        """
        check_range("VideoReader.sample", "fps", fps, 0, MAX_FPS, open_low=True)
        if self._begun:
            hint = "Open it again."
            raise VideoError(message(self._who, "to be read once", "a second reading", hint))
        self._begun = True
        return self._sample(Fraction(fps))

    def _sample(self, fps: Fraction) -> Iterator[SampledFrame]:
        index = 0
        shown: _TimedFrame | None = None
        for frame in self._timed_frames():
            self._check_open()
            if shown is None and frame.start > LONGEST:
                expected = "frames within an hour of its start"
                got = f"the first at {float(frame.start):.2f} s"
                raise VideoError(message(self._who, expected, got, "Its timestamps are damaged."))
            if shown is not None:
                while _middle(index, fps) < frame.start:
                    yield shown.at(_middle(index, fps))
                    index += 1
            shown = frame
        self._check_open()
        if shown is None:
            raise VideoError(message(self._who, "frames", "none that can be decoded"))
        while _middle(index, fps) < shown.end:
            yield shown.at(_middle(index, fps))
            index += 1
        if index == 0:
            yield shown.at(shown.start)
        self._finish(shown.end)

    def _check_open(self) -> None:
        if self._closed:
            raise VideoError(message(self._who, "to be open while it is read", "a closed video"))

    def _timed_frames(self) -> Iterator["_TimedFrame"]:
        """Yield all frames in order of their start."""
        raise NotImplementedError

    def _finish(self, end: Fraction | float) -> None:
        self.duration = float(end)


class _TimedFrame(NamedTuple):
    """A frame that is converted to RGB when first needed."""

    start: Fraction
    end: Fraction
    convert: Callable[[], np.ndarray]

    def at(self, time: Fraction) -> SampledFrame:
        return SampledFrame(float(time), float(self.start), self.convert())


def open_video(
    source: VideoSource,
    *,
    frame_rate: float | Fraction | None = None,
    max_pixels: int = MAX_PIXELS,
    num_threads: int = 0,
) -> VideoReader:
    """Open a video, to inspect it and to sample its frames.

    Frames are decoded one at a time. PyAV's logging is turned off, as it can block decoding.

    Args:
        source: A path; the content of a file, as bytes or a binary file object; or frames.
        frame_rate: Frames per second. Only for frames, which need it.
        max_pixels: Largest number of pixels per frame.
        num_threads: Decoding threads; 0 lets PyAV choose.

    Shape:
        - source: (T, H, W, 3) uint8, RGB, if it is frames

    Raises:
        ArgumentError: If `source` has another type, `frame_rate` is missing or not allowed, or a
            number is out of range.
        FileError: If a file cannot be read, or the path is a URL.
        VideoError: If it is empty, not a video, has only sound, has frames of more than
            `max_pixels`, or none that can be decoded.
        MissingDependencyError: If the extra `video` is not installed.

    Example:
        >>> with open_video("cooking.mp4") as video:  # doctest: +SKIP
        ...     images = [frame.image for frame in video.sample(fps=2)]
        ...     print(video.duration, video.damage)
    """
    who = "open_video"
    check_int(who, "max_pixels", max_pixels, at_least=1)
    check_int(who, "num_threads", num_threads, at_least=0)
    if isinstance(source, np.ndarray | Tensor):
        if frame_rate is None:
            raise ArgumentError(message(who, "the frame_rate of the frames", "none"))
        rate = check_range(who, "frame_rate", frame_rate, 0, open_low=True)
        if not 1 / float(LONGEST) <= rate <= _FASTEST:
            expected = f"a frame_rate from 1 per hour to {_FASTEST:,} per second"
            raise ArgumentError(message(who, expected, frame_rate))
        return _ArrayReader(source, Fraction(frame_rate))
    if frame_rate is not None:
        hint = "A file declares its own."
        raise ArgumentError(message(who, "frame_rate only for frames", frame_rate, hint))
    return _AvReader(source, _check_source(source), max_pixels, num_threads)


def require_av() -> Any:
    """Import PyAV, or raise MissingDependencyError."""
    return require("av", extra="video", purpose="decoding videos")


def open_container(source: _File) -> Any:
    """Open a file with PyAV, as video or sound only: FFmpeg also reads playlists of other files."""
    options = {"format_whitelist": _FORMATS}
    return require_av().open(_av_file(source), options=options, metadata_errors="replace")


def probe_video(source: VideoSource, **options: Any) -> VideoInfo:
    """Return the properties of a video; a file with only sound has none.

    `source`, `options` and errors are those of `open_video`.
    """
    try:
        with open_video(source, **options) as video:
            return video.info
    except NoVideoStreamError:
        return VideoInfo(has_video=False)


class _ArrayReader(VideoReader):
    def __init__(self, frames: np.ndarray | Tensor, frame_rate: Fraction) -> None:
        array = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else frames
        who = "open_video"
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
            expected = "frames of shape (T, H, W, 3) and dtype uint8, T >= 1"
            raise ArgumentError(message(who, expected, f"{array.shape} {array.dtype}"))
        num_frames, height, width, _ = array.shape
        duration = float(num_frames / frame_rate)
        info = VideoInfo(True, duration, float(frame_rate), width, height, rotation=0, start=0.0)
        super().__init__(who, info)
        self._array, self._frame_rate = array, frame_rate

    def _timed_frames(self) -> Iterator[_TimedFrame]:
        for index, image in enumerate(self._array):
            start, end = index / self._frame_rate, (index + 1) / self._frame_rate
            yield _TimedFrame(start, end, lambda image=image: image)  # type: ignore[misc]


class _AvReader(VideoReader):
    """Reads files with PyAV and reports damage."""

    def __init__(self, source: _File, name: str, max_pixels: int, threads: int) -> None:
        super().__init__(name, VideoInfo(has_video=True))
        self._av = require_av()
        self._max_pixels = max_pixels
        # It can deadlock: a decoding thread waits for the interpreter lock to log, while the thread
        # that closes the decoder holds the lock and waits for it. torchvision before 0.26 turns
        # logging on.
        self._av.logging.set_level(None)
        try:
            self._container: Any = open_container(source)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            got = f"something else ({first_line(error)})"
            raise VideoError(message(name, "a video", got)) from error
        try:
            self._open_stream(threads)
        except BaseException:
            self._container.close()
            raise

    def _open_stream(self, threads: int) -> None:
        streams = [one for one in self._container.streams.video if not _is_cover(one)]
        if not self._container.streams:
            raise VideoError(message(self._who, "a video", "a file without any stream"))
        if not streams:
            raise NoVideoStreamError(message(self._who, "a video", "a file without a video stream"))
        best = self._container.streams.best("video")
        stream = best if best in streams else streams[0]
        if stream.codec_context is None:
            raise VideoError(message(self._who, "frames", "some of an unknown codec"))
        _check_pixels(self._who, stream.width or 0, stream.height or 0, self._max_pixels)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        # Frames may be larger than declared, and decoding would allocate them before any check.
        stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
        self._stream = stream
        self._problems: list[str] = []
        self._lost, self._reason = 0, ""  # number of undecodable frames, and the first reason
        self._is_avi = self._container.format.name == "avi"
        self._first_dts: int | None = None
        self._is_packed: bool | None = None
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            got = f"none that can be decoded ({self._reason or 'the file ends before'})"
            raise VideoError(message(self._who, "frames", got))
        self._first = first
        rate = stream.average_rate or stream.guessed_rate
        self._stated_end: float | None = None
        stated = self._make_timeline(first, 1 / Fraction(rate) if rate else Fraction(0))
        swapped, rotation = _orientation(first)[0], _rotation(first)
        width, height = self._shown_width(first), first.height
        _check_pixels(self._who, width, height, self._max_pixels)
        self.info = VideoInfo(
            has_video=True,
            duration=stated,
            frame_rate=float(rate) if rate else None,
            width=height if swapped else width,
            height=width if swapped else height,
            rotation=rotation,
            codec=stream.codec_context.name,
            start=float(self._timeline.start),
        )

    def close(self) -> None:
        super().close()
        self._frames.close()
        self._container.close()

    def _packs_frames(self, packet: Any) -> bool:
        """Return whether packets alternately hold two frames and none, given the first one."""
        decoder = self._stream.codec_context
        described = (decoder.extradata or b"") + bytes(packet)
        return decoder.name == "mpeg4" and bool(_PACKED.search(described))

    def _make_timeline(self, first: Any, period: Fraction) -> float | None:
        """Interpret the timestamps, and return the declared duration."""
        stream, flags = self._stream, int(self._container.format.flags)
        timestamps: Timestamps = "decoded" if self._is_avi or self._is_packed else "shown"
        if self._container.format.name == "mpeg":
            timestamps = "guessed"  # in MPEG-PS, all frames of a packet share one
        ticks = first.pts
        if self._is_avi:
            # The first frame is shown when the first packet is decoded, unless that was lost.
            ticks = first.dts if self._lost else self._first_dts
        if flags & _NO_TIMESTAMPS:
            timestamps, ticks = "none", 0
        start = Fraction((ticks or 0) * first.time_base)
        begun = [one for one in self._container.streams.audio if one.start_time is not None]
        if self._lost and stream.start_time is not None:
            begun.append(stream)
        self._origin = min([start, *(one.start_time * one.time_base for one in begun)])
        stated = None
        if timestamps != "none":  # otherwise FFmpeg guesses it from the file size
            stated, of_stream = self._stated_duration()
            self._stated_end = stated if of_stream else None
        # No frame is shown for longer than the video, whose declared duration may be damaged too.
        longest_gap = min(max(Fraction(stated or LONGEST), _JUMP), LONGEST)
        may_restart = bool(flags & _MAY_RESTART)
        self._timeline = Timeline(
            first,
            start,
            self._origin,
            timestamps,
            period=period,
            longest_gap=_JUMP if may_restart else longest_gap,
            may_restart=may_restart,
        )
        return stated

    def _stated_duration(self) -> tuple[float | None, bool]:
        """Return the declared duration in seconds, and whether it is that of the frames."""
        stream = self._stream
        if stream.duration:
            start = (stream.start_time or 0) * stream.time_base
            return float(start + stream.duration * stream.time_base - self._origin), True
        tag = _seconds(stream.metadata.get("DURATION", ""))  # Matroska
        if tag is not None:
            return tag - float(self._origin), True
        if self._container.duration:
            return self._container.duration / self._av.time_base, False
        return None, False

    def _decode(self) -> Generator[Any, None, None]:
        """Yield all decodable frames in display order."""
        packets = self._container.demux(self._stream)
        waiting: list[Any] = []
        while True:
            try:
                packet = next(packets, None)
            except IndexError:
                # PyAV met a stream that the header does not declare; resume after that packet.
                packets = self._container.demux(self._stream)
                continue
            except (self._av.error.FFmpegError, OSError) as error:
                self._problems.append(f"it cannot be read to its end ({first_line(error)})")
                return
            if packet is None:
                return
            if self._is_packed is None:
                self._first_dts = packet.dts
                self._is_packed = self._packs_frames(packet)
                waiting = [packet.pts]
            if self._is_packed and not self._is_avi and None not in (packet.pts, waiting[0]):
                # FFmpeg's dts are wrong guesses for packed frames: take the pts in order.
                packet.dts = heapq.heappushpop(waiting, packet.pts)
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError as error:
                self._count_lost(first_line(error))
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._count_lost("in part")
                yield frame

    def _timed_frames(self) -> Iterator[_TimedFrame]:
        frame = self._first
        while frame is not None:
            start, end = self._timeline.place(frame)
            yield _TimedFrame(start, end, cache(partial(self._convert, frame)))
            frame = next(self._frames, None)

    def _shown_width(self, frame: Any) -> int:
        """Return the width in square pixels."""
        aspect = self._stream.sample_aspect_ratio or 1
        is_square = abs(aspect - 1) <= _NEARLY_SQUARE  # encoders round, for example to 1280:1281
        return max(1, round(frame.width * (1 if is_square else aspect)))

    def _convert(self, frame: Any) -> np.ndarray:
        width = self._shown_width(frame)
        _check_pixels(self._who, max(width, frame.width), frame.height, self._max_pixels)
        try:
            image: np.ndarray = frame.to_ndarray(format="rgb24", width=width)
        except (self._av.error.FFmpegError, ValueError) as error:
            got = f"format {frame.format.name} ({first_line(error)})"
            raise VideoError(message(self._who, "frames that convert to RGB", got)) from error
        swapped, right_to_left, bottom_up = _orientation(frame)
        image = image.swapaxes(0, 1) if swapped else image
        image = image[:, ::-1] if right_to_left else image
        image = image[::-1] if bottom_up else image
        return np.ascontiguousarray(image)

    def _count_lost(self, reason: str) -> None:
        self._lost += 1
        self._reason = self._reason or reason

    def _finish(self, end: Fraction | float) -> None:
        super()._finish(end)
        problems = list(self._problems)
        if self._timeline.problem:
            problems.append(self._timeline.problem)
        if self._lost:
            problems.append(f"{self._lost} frames could not be decoded ({self._reason})")
        rate = self.info.frame_rate or math.inf
        stated = None if self._timeline.is_mended else self._stated_end
        if stated is not None and end < stated - max(_END_TOLERANCE, 2 / rate):
            problems.append(f"it ends at {float(end):.2f} s of {stated:.2f} s")
        self.damage = "; ".join(problems) or None


def _middle(index: int, fps: Fraction) -> Fraction:
    return Fraction(2 * index + 1, 2) / fps


def _check_source(source: object) -> str:
    """Return the name of a source in messages; raise if it is unreadable, empty or text."""
    given = getattr(source, "name", None)
    name = given if isinstance(given, str) else "the video"  # a pipe's name is a number
    if isinstance(source, str | os.PathLike):
        check_no_address("open_video", source)
        name = str(Path(source))
    head = None
    with foreign_errors(FileError, f"cannot read {name}"):
        if isinstance(source, str | os.PathLike):
            if os.path.exists(source) and not os.path.isfile(source):
                raise ValueError("it is not a file")
            with open(source, "rb") as file:
                head = file.read(_HEAD)
        elif isinstance(source, bytes):
            head = source[:_HEAD]
        elif not hasattr(source, "read") or isinstance(source, io.TextIOBase):
            expected = "a path, bytes, an open binary file or an array of frames"
            got = "a file opened as text" if hasattr(source, "read") else type(source).__name__
            raise ArgumentError(message("open_video", expected, got))
        elif source.seekable():  # type: ignore[attr-defined]
            source.seek(0)  # type: ignore[attr-defined]
            head = source.read(_HEAD)
            source.seek(0)  # type: ignore[attr-defined]
    if head == b"":
        raise VideoError(message(name, "a video", "an empty file"))
    if head and not _CONTROL.intersection(head):
        # FFmpeg renders text as video, and follows playlists to other files and hosts.
        raise VideoError(message(name, "a video", "text"))
    return name


def _check_pixels(who: str, width: int, height: int, most: int) -> None:
    if width * height > most:
        expected = f"frames of at most {most:,} pixels"
        hint = "Pass a larger max_pixels to allow them."
        raise VideoError(message(who, expected, f"{width} x {height}", hint))


def _av_file(source: _File) -> Any:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # Without the prefix, FFmpeg takes a name with a colon for a URL.
    return f"file:{os.fspath(source)}" if isinstance(source, str | os.PathLike) else source


def _is_cover(stream: Any) -> bool:
    """Return whether a video stream is the cover art of an audio file."""
    disposition = getattr(stream, "disposition", 0)
    # PyAV has flags before release 18, numbers since.
    flags = int(getattr(disposition, "value", disposition))
    return bool(flags & 0x400)  # AV_DISPOSITION_ATTACHED_PIC


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Return whether to swap the axes of a frame, then to flip its columns and its rows."""
    a, b, c, d = _display_matrix(frame)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _rotation(frame: Any) -> int:
    a, b, c, d = _display_matrix(frame)
    if a * d < b * c:  # mirrored left to right before the rotation
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c, d: the pixel stored at (x, y) is shown at (a x + c y, b x + d y)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def _seconds(clock: str) -> float | None:
    """Parse hours:minutes:seconds into seconds."""
    numbers = [parse_number(one) for one in clock.split(":")]
    if len(numbers) != 3 or None in numbers:
        return None
    return sum(one * unit for one, unit in zip(numbers, (3600, 60, 1), strict=True) if one)


_JUMP = Fraction(10)  # seconds; longer gaps are jumps where clocks may restart, as in FFmpeg
_NO_TIMESTAMPS, _MAY_RESTART = 0x80, 0x200  # AVFMT_NOTIMESTAMPS and AVFMT_TS_DISCONT
# DivX and XviD may pack two frames into a packet and leave the next one empty, unknown to the file.
_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(?:Build|b)\d+p")
_NEARLY_SQUARE = Fraction(2, 100)  # ignored deviation of the pixel aspect ratio from 1
_FASTEST = 1_000_000  # frames per second of an array
_END_TOLERANCE = 0.5  # seconds an intact video may end before its declared end
_HEAD = 4096  # bytes read to tell text from video
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")
# FFmpeg's formats of a single video or audio file. Left out are text and still images, which FFmpeg
# renders as videos, and playlists, which refer to other files and hosts.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,gif,"
    "h264,hevc,av1,obu,ivf,m4v,mjpeg,mxf,rm,dv,nut,yuv4mpegpipe,wtv,swf,"
    "mp3,wav,aac,flac,ac3,eac3,aiff,au,caf,w64,amr"
)
