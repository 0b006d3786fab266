"""Converting videos to a form that all browsers play."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tmapdiff._core.checks import require
from tmapdiff._core.files import written_beside
from tmapdiff.video import open_video

# Codecs that browsers play, by FFmpeg's names of containers.
_PLAYABLE = {
    "mov,mp4,m4a,3gp,3g2,mj2": {"h264"},
    "matroska,webm": {"vp8", "vp9"},
}
_SUFFIXES = {".mp4", ".m4v", ".webm"}
_FORMATS = {"yuv420p", "yuvj420p"}
_MAX_RATE = 25.0
_MAX_HEIGHT = 480


def is_playable(path: str | os.PathLike[str]) -> bool:
    """Return whether all browsers can play a file and seek in it."""
    av = require("av", extra="video", purpose="reading videos")
    if Path(path).suffix.lower() not in _SUFFIXES:
        return False
    try:
        with av.open(os.fspath(path), metadata_errors="replace") as file:
            stream = file.streams.best("video")
            return (
                stream is not None
                and file.duration is not None
                and stream.codec_context.name in _PLAYABLE.get(file.format.name, ())
                and stream.codec_context.pix_fmt in _FORMATS
            )
    except (av.error.FFmpegError, OSError, ValueError):
        return False


def write_playable(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write the frames of a video as H.264 in mp4, at their times and at most 480 pixels high."""
    av = require("av", extra="video", purpose="writing videos")
    with written_beside(target) as new, open_video(path) as video:
        rate = Fraction(min(video.info.frame_rate or _MAX_RATE, _MAX_RATE)).limit_denominator(1000)
        scale = min(1.0, _MAX_HEIGHT / (video.info.height or _MAX_HEIGHT))
        with av.open(str(new), "w", format="mp4", options={"movflags": "+faststart"}) as file:
            stream: Any = file.add_stream("libx264", rate=rate)
            stream.width = _even((video.info.width or 2) * scale)
            stream.height = _even((video.info.height or 2) * scale)
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "23", "preset": "veryfast"}
            for frame in video.sample(rate):
                image = np.ascontiguousarray(frame.image)
                resized = av.VideoFrame.from_ndarray(image, format="rgb24")
                resized = resized.reformat(stream.width, stream.height, "yuv420p")
                file.mux(stream.encode(resized))
            file.mux(stream.encode())


def _even(size: float) -> int:
    return max(2, 2 * round(size / 2))
