"""Made-up videos, whose pictures tell which they are."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tmapdiff import open_video

BITS, HEIGHT, WIDTH = 8, 32, 64  # a stripe is 8 pixels wide: compression leaves it as it is


def number_image(number, height=HEIGHT, width=WIDTH):
    """A picture whose stripes, left to right, are the bits of a number."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def make_images(count, height=90, width=160):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def read_number(image):
    stripes = image.mean(axis=(0, 2)).reshape(BITS, -1).mean(axis=1)
    return sum(int(stripe > 128) << bit for bit, stripe in enumerate(stripes))


def evenly(count, start=0, period=Fraction(1, 10)):
    """Times from which so many pictures are shown, and the end of the last."""
    return [start + index * period for index in range(count + 1)]


def sampled(source, fps, **options):
    """Frames of a video at so many times a second, and its reader."""
    with open_video(source, **options) as video:
        return list(video.sample(fps)), video


def read_numbers(frames):
    return [read_number(frame.image) for frame in frames]


def shown(source, fps=10, **options):
    """Numbers of the frames shown at the middles of pieces of `1 / fps` seconds, and the reader."""
    frames, video = sampled(source, fps, **options)
    return read_numbers(frames), video


def write_video(
    target,
    times,
    *,
    images=None,
    format=None,
    codec="libx264",
    pix_fmt="yuv420p",
    time_base=Fraction(1, 90_000),
    sound=None,
    rotation=None,
    container_options=None,
    gop=5,
    rate=10,
    b_frames=None,
    pixel_aspect=None,
):
    """Encode pictures of their number, shown from the given times on (the last time ends it).

    `sound` is the start and end in seconds of a track of silence. With `b_frames`, exactly so many
    stand between others. A `pixel_aspect` of 2 means pixels that are twice as wide as high.
    """
    av = pytest.importorskip("av")
    times = [Fraction(time) for time in times]
    if images is None:
        images = [number_image(index) for index in range(len(times) - 1)]
    with av.open(
        str(target) if isinstance(target, Path) else target,
        "w",
        format=format,
        options=container_options or {},
    ) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
            # Or encoders choose themselves.
            fixed = {"libx264": {"x264-params": "b-adapt=0:scenecut=0"}}
            stream.options = fixed.get(codec, {"b_strategy": "0", "sc_threshold": "1000000000"})
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        track = file.add_stream("pcm_s16le", rate=8000) if sound else None
        ticks = [time / time_base for time in times]
        assert all(tick.denominator == 1 for tick in ticks)
        # An encoder does not tell how long the last picture is shown.
        lasts = {int(tick): int(until - tick) for tick, until in pairwise(ticks)}
        for image, tick in zip([*images, None], ticks, strict=True):
            frame = None  # flushes
            if image is not None:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = int(tick), time_base
            for packet in stream.encode(frame):
                packet.duration = lasts[packet.pts]
                file.mux(packet)
        if track is not None:
            first, last = (int(8000 * Fraction(time)) for time in sound)
            for start in range(first, last, 1000):
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1000), np.int16), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
                file.mux(track.encode(frame))
            file.mux(track.encode())
    return target
