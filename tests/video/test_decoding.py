import io
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import weakref
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.videos import (
    evenly,
    number_image,
    read_number,
    read_numbers,
    sampled,
    shown,
    write_video,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tmapdiff import encode_video, extract_features, open_video, probe_video
from tmapdiff.errors import ArgumentError, FileError, MissingDependencyError, VideoError
from tmapdiff.inspection import inspect
from tmapdiff.video.decoding import _is_cover

av = pytest.importorskip("av")

TENTHS, SIXTY = evenly(30), evenly(60)
# Container, codec and time base: what real videos come in.
FORMATS = [
    ("mp4", "libx264", Fraction(1, 90_000)),
    ("mov", "libx264", Fraction(1, 600)),
    ("mkv", "libx264", Fraction(1, 1000)),
    ("webm", "libvpx", Fraction(1, 1000)),
    ("avi", "mpeg4", Fraction(1, 10)),
    ("ts", "libx264", Fraction(1, 90_000)),
]


def shown_at(times, fps):
    """Oracle: numbers of the frames at the middles, where frame i is shown from times[i] on."""
    end, last = times[-1], len(times) - 2
    middles = [Fraction(2 * i + 1, 2) / Fraction(fps) for i in range(math.ceil(end * fps) + 1)]
    return [
        max((i for i, time in enumerate(times[:-1]) if time <= middle), default=0)
        for middle in middles
        if middle < end
    ] or [last]


def intact(source, fps, **options):
    frames, video = sampled(source, fps, **options)
    assert video.damage is None
    return frames, video


@pytest.mark.parametrize(("suffix", "codec", "time_base"), FORMATS, ids=lambda p: str(p)[:7])
def test_frames_are_those_shown_at_the_middles(tmp_path, suffix, codec, time_base):
    path = write_video(tmp_path / f"a.{suffix}", TENTHS, codec=codec, time_base=time_base)
    for fps in (Fraction(1, 2), 2, 3, 7.3, 10, 25):
        frames, video = intact(path, fps)
        assert read_numbers(frames) == shown_at(TENTHS, fps)
        for index, (frame, number) in enumerate(zip(frames, read_numbers(frames), strict=True)):
            assert frame.time == pytest.approx((index + 0.5) / fps, abs=1e-9)
            assert frame.shown_from == pytest.approx(number / 10, abs=1e-6)
        assert video.duration == pytest.approx(3.0)
    info = probe_video(path)
    assert (info.width, info.height, info.rotation, info.has_video) == (64, 32, 0, True)
    assert info.duration == pytest.approx(3.0)
    assert info.frame_rate == pytest.approx(10)
    assert info.start == 0
    assert info.codec == {"libx264": "h264", "libvpx": "vp8"}.get(codec, codec)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=12),
    fps=st.fractions(Fraction(1, 10), 30, max_denominator=1000),
    suffix=st.sampled_from(["mp4", "mkv"]),
)
def test_uneven_frames(tmp_path, gaps, fps, suffix):
    times = [Fraction(sum(gaps[:i]), 1000) for i in range(len(gaps) + 1)]
    path = write_video(tmp_path / f"a.{suffix}", times, time_base=Fraction(1, 1000))
    frames, video = intact(path, fps)
    assert read_numbers(frames) == shown_at(times, fps)
    assert video.duration == pytest.approx(float(times[-1]))


@pytest.mark.parametrize("suffix", ["mov", "mkv"])
def test_frames_that_begin_after_the_sound_and_end_before_it(tmp_path, suffix):
    times = [time + 1 for time in TENTHS]
    path = write_video(tmp_path / f"a.{suffix}", times, time_base=Fraction(1, 1000), sound=(0, 4))
    frames, video = intact(path, 2)
    assert read_numbers(frames) == [0, 0, 2, 7, 12, 17, 22, 27] == shown_at(times, 2)
    assert [frame.shown_from for frame in frames[:3]] == pytest.approx([1.0, 1.0, 1.2])
    assert video.info.start == pytest.approx(1.0)
    assert video.duration == pytest.approx(4.0)
    assert video.info.duration == pytest.approx(4.0)
    # Sound that continues after the frames.
    path = write_video(tmp_path / f"b.{suffix}", TENTHS, time_base=Fraction(1, 1000), sound=(0, 9))
    frames, video = intact(path, 2)
    assert len(frames) == 6
    assert video.duration == video.info.duration == pytest.approx(3.0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_time_begins_with_the_first_frame_where_there_is_no_sound(tmp_path, suffix):
    times = [time + 5 for time in TENTHS]
    base = Fraction(1, 90_000) if suffix == "ts" else Fraction(1, 1000)
    frames, video = intact(write_video(tmp_path / f"a.{suffix}", times, time_base=base), 2)
    assert read_numbers(frames) == shown_at(TENTHS, 2)
    assert video.duration == pytest.approx(3.0)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.skipif(not hasattr(av.VideoFrame, "rotation"), reason="PyAV cannot write rotations")
def test_rotated_videos_come_upright(tmp_path, degrees, mirrored):
    corners = np.zeros((32, 64, 3), np.uint8)
    corners[:16, :32], corners[:16, 32:], corners[16:, :32] = 60, 120, 180
    path = write_video(tmp_path / "a.mp4", [0, 1], images=[corners], rotation=(degrees, mirrored))
    # PyAV counts counterclockwise, as NumPy does, and mirrors after that.
    expected = np.rot90(corners, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    (frame,), video = intact(path, 1)
    assert frame.image.shape == expected.shape == (video.info.height, video.info.width, 3)
    assert np.abs(frame.image.astype(int) - expected).max() < 8
    if not mirrored:
        assert video.info.rotation == -degrees % 360


# PyAV cannot write the aspect for codecs that do not store it themselves.
ANAMORPHIC = [one for one in FORMATS if one[1] != "libvpx"]


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(3, 2), Fraction(1, 2)])
@pytest.mark.parametrize(("suffix", "codec", "time_base"), ANAMORPHIC, ids=lambda p: str(p)[:7])
def test_anamorphic_videos_are_as_wide_as_shown(tmp_path, suffix, codec, time_base, aspect):
    path = write_video(
        tmp_path / f"a.{suffix}", TENTHS, codec=codec, time_base=time_base, pixel_aspect=aspect
    )
    frames, video = intact(path, 2)
    assert (video.info.width, video.info.height) == (64 * aspect, 32)
    assert all(frame.image.shape == (32, 64 * aspect, 3) for frame in frames)
    assert read_numbers(frames) == shown_at(TENTHS, 2)


def test_the_limit_of_pixels_is_that_of_frames_as_shown(tmp_path):
    path = write_video(tmp_path / "a.mp4", TENTHS, pixel_aspect=Fraction(2))
    assert len(intact(path, 2, max_pixels=128 * 32)[0]) == 6
    with refuses(VideoError, "expected frames of at most 4,095 pixels, got 128 x 32. Pass a"):
        intact(path, 2, max_pixels=128 * 32 - 1)
    with refuses(VideoError, "expected frames of at most 2,047 pixels, got 64 x 32. Pass a"):
        open_video(path, max_pixels=2047)  # as stored


@pytest.mark.skipif(not hasattr(av.VideoFrame, "rotation"), reason="PyAV cannot write rotations")
def test_anamorphic_videos_are_stretched_before_they_are_turned(tmp_path):
    image = number_image(0b10110001)
    options = {"images": [image], "rotation": (90, False), "pixel_aspect": Fraction(2)}
    (frame,), video = intact(write_video(tmp_path / "a.mp4", [0, 1], **options), 1)
    assert (video.info.width, video.info.height) == (32, 128)
    assert read_number(np.rot90(frame.image, -1)) == 0b10110001
    assert frame.image.shape == (128, 32, 3)


@pytest.mark.parametrize("aspect", [None, Fraction(1), Fraction(1280, 1281), Fraction(51, 50)])
def test_pixels_that_are_nearly_square_are_left_as_they_are(tmp_path, aspect):
    path = write_video(tmp_path / "a.mp4", TENTHS, pixel_aspect=aspect)
    frames, video = intact(path, 2)
    assert (video.info.width, video.info.height) == (64, 32)
    with av.open(str(path)) as file:
        stored = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    for frame, number in zip(frames, shown_at(TENTHS, 2), strict=True):
        assert np.array_equal(frame.image, stored[number])


def test_sources(tmp_path):
    path = write_video(tmp_path / "a: b.mp4", TENTHS)
    expected = shown_at(TENTHS, 2)
    content = path.read_bytes()
    for source in (path, str(path), content, io.BytesIO(content)):
        assert read_numbers(intact(source, 2)[0]) == expected
    with path.open("rb") as file:
        file.read(100)  # it is read from its start anyway
        assert read_numbers(intact(file, 2)[0]) == expected
        assert not file.closed
        assert probe_video(file) == probe_video(path)


def test_a_source_that_cannot_seek(tmp_path):
    content = write_video(tmp_path / "a.mkv", TENTHS, time_base=Fraction(1, 1000)).read_bytes()
    reading, writing = os.pipe()

    def send():
        with os.fdopen(writing, "wb") as file:
            file.write(content)

    sender = threading.Thread(target=send)
    sender.start()
    with os.fdopen(reading, "rb") as file:
        assert read_numbers(intact(file, 2)[0]) == shown_at(TENTHS, 2)
    sender.join()


def test_arrays_have_the_same_interface():
    array = np.stack([number_image(index) for index in range(30)])
    for source in (array, torch.from_numpy(array)):
        frames, video = intact(source, 2, frame_rate=10)
        assert read_numbers(frames) == shown_at(TENTHS, 2)
        assert video.duration == video.info.duration == 3.0
        assert (video.info.frame_rate, video.info.width, video.info.height) == (10.0, 64, 32)
    # 30000 / 1001 frames per second: no time may be off by a rounding error.
    rate = Fraction(30_000, 1001)
    frames, _ = intact(array, rate, frame_rate=rate)
    assert read_numbers(frames) == list(range(30))


def test_samples_of_one_frame_share_its_image():
    array = np.stack([number_image(index) for index in range(3)])
    frames, _ = intact(array, 30, frame_rate=10)
    assert read_numbers(frames) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert frames[0].image is frames[2].image


def cut(path, share):
    return path.read_bytes()[: int(path.stat().st_size * share)]


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_truncated_videos_give_what_there_is(tmp_path, suffix):
    path = write_video(
        tmp_path / f"a.{suffix}",
        SIXTY,
        codec="mpeg4" if suffix == "avi" else "libx264",
        time_base=Fraction(1, 10) if suffix == "avi" else Fraction(1, 90_000),
        container_options={"movflags": "faststart"} if suffix == "mp4" else {},
    )
    found, video = shown(cut(path, 0.8), 2)
    whole = shown_at(SIXTY, 2)
    assert 1 < len(found) < len(whole)
    # The last frames may be damaged themselves.
    assert found[:-2] == whole[: len(found) - 2]
    assert "it ends at " in video.damage
    assert "\n" not in video.damage
    assert video.duration < 5.5


def test_truncated_matroska(tmp_path):
    path = write_video(tmp_path / "a.mkv", SIXTY, time_base=Fraction(1, 1000))
    found, video = shown(cut(path, 0.7), 2)
    assert found == shown_at(SIXTY, 2)[: len(found)]
    assert video.damage == f"it ends at {video.duration:.2f} s of 6.00 s"
    assert video.info.duration == 6.0


def test_a_hole_in_a_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", SIXTY)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 3 + 60):
        content[place] = 0xA5
    found, video = shown(bytes(content), 10)
    whole = shown_at(SIXTY, 10)
    wrong = [index for index, (a, b) in enumerate(zip(found, whole, strict=True)) if a != b]
    # At most a group of pictures is lost; the frame before it stays on screen.
    assert 0 < len(wrong) <= 10
    assert all(found[index] <= whole[index] for index in wrong)
    assert "frames could not be decoded (Invalid data found when processing input)" in video.damage


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_too_little_of_a_video_is_an_error(tmp_path, share):
    path = write_video(tmp_path / "a.mp4", SIXTY)  # its index is at its end
    with refuses(VideoError, "the video: expected a video, got "):
        open_video(cut(path, share))


@pytest.mark.parametrize("start", [3600, 3601])
def test_a_first_frame_more_than_an_hour_after_the_start_is_refused(tmp_path, start):
    times = [start, start + 1, start + 2]
    path = write_video(
        tmp_path / "a.mkv", times, time_base=Fraction(1, 1000), sound=(0, Fraction(1, 2))
    )
    with open_video(path) as video:
        if start == 3600:  # the first frame is used for all times before it
            assert len(list(video.sample(1))) == 3602
            return
        expected = "a.mkv: expected frames within an hour of its start, got the first at 3601.00"
        with refuses(VideoError, expected, "Its timestamps are damaged."):
            list(video.sample(1))


def test_files_that_are_no_video(tmp_path):
    random = np.random.default_rng(0).bytes(50_000)
    (tmp_path / "random.mp4").write_bytes(random)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6,\na.ts\n#EXT-X-ENDLIST\n"
    write_video(tmp_path / "a.ts", TENTHS)
    for name, text in (
        ("notes.txt", "hello\n" * 100),
        ("list.m3u8", playlist),
        ("list.ffconcat", "ffconcat version 1.0\nfile 'a.ts'\n"),
    ):
        (tmp_path / name).write_text(text)
        with refuses(VideoError, f"{tmp_path / name}: expected a video, got text."):
            open_video(tmp_path / name)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for source in (tmp_path / "empty.mp4", b"", io.BytesIO()):
        with refuses(VideoError, ": expected a video, got an empty file."):
            open_video(source)
    for source in (tmp_path / "random.mp4", random):
        with refuses(VideoError, ": expected a video, got something else ("):
            open_video(source)
    from PIL import Image

    Image.fromarray(number_image(3)).save(tmp_path / "still.png")
    with refuses(VideoError, "still.png: expected a video, got "):
        open_video(tmp_path / "still.png")


def test_sound_only(tmp_path):
    path = tmp_path / "sound.mka"
    with av.open(str(path), "w") as file:
        track = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate = 8000
        file.mux(track.encode(frame))
        file.mux(track.encode())
    info = probe_video(path)
    assert not info.has_video
    assert (info.duration, info.width, info.codec) == (None, None, None)
    with refuses(VideoError, f"{path}: expected a video, got a file without a video stream."):
        open_video(path)


def test_cover_art_is_not_a_video():
    # Older releases of PyAV have flags, newer ones numbers.
    cover = av.stream.Disposition.attached_pic
    for disposition, is_cover in ((cover, True), (int(cover.value), True), (0, False)):
        assert _is_cover(SimpleNamespace(disposition=disposition)) == is_cover


def test_files_that_cannot_be_read(tmp_path):
    with refuses(FileError, f"cannot read {tmp_path / 'none.mp4'}: No such file or directory."):
        open_video(tmp_path / "none.mp4")
    with refuses(FileError, f"cannot read {tmp_path}: it is not a file."):
        open_video(tmp_path)
    with refuses(FileError, "embedded null byte"):
        open_video("a\0b")
    path = write_video(tmp_path / "a.mp4", TENTHS)
    with path.open("rb") as file:
        pass
    with refuses(FileError, f"cannot read {path}: I/O operation on closed file."):
        open_video(file)
    if os.geteuid():
        path.chmod(0)
        with refuses(FileError, f"cannot read {path}: Permission denied."):
            open_video(path)


@pytest.mark.parametrize("address", ["https://host/a.mp4", "rtsp://host/live", "s3://bucket/a.mp4"])
def test_addresses_are_not_opened(tmp_path, address):
    line = f"expected a path, got {address}. URLs are not supported: download the file first."
    for place in (address, Path(address)):
        for call in (
            lambda place: open_video(place),
            lambda place: probe_video(place),
            lambda place: inspect(place),
            lambda place: extract_features(place, None, tmp_path / "a.h5", fps=1),
            lambda place: encode_video(place, None, fps=1),
        ):
            with refuses(FileError, line):
                call(place)


def test_a_file_whose_path_looks_like_an_address_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "https:").mkdir()
    write_video(tmp_path / "https:" / "a.mp4", TENTHS)
    assert read_numbers(intact("https://a.mp4", 2)[0]) == shown_at(TENTHS, 2)


def test_an_open_file_that_fails(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 128, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mkv", SIXTY, images=list(noise), time_base=Fraction(1, 1000))
    half = path.stat().st_size // 2

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > half:
                raise OSError("the network is gone")
            return super().read(size)

    found, video = shown(Failing(path.read_bytes()), 2)
    assert 0 < len(found) < len(shown_at(SIXTY, 2))
    assert "it cannot be read to its end (the network is gone)" in video.damage


def test_refusals(tmp_path):
    path = write_video(tmp_path / "a.mp4", TENTHS)
    array = np.zeros((2, 4, 4, 3), np.uint8)
    expected = "open_video: expected a path, bytes, an open binary file or an array of frames"
    for source, options, text in (
        (3, {}, f"{expected}, got int."),
        (io.StringIO("x"), {}, f"{expected}, got a file opened as text."),
        (array, {}, "expected the frame_rate of the frames, got none."),
        (path, {"frame_rate": 3}, "expected frame_rate only for frames, got 3. A file declares"),
        (array, {"frame_rate": 0}, "expected frame_rate in (0, inf), got 0."),
        (path, {"max_pixels": 0}, "expected max_pixels to be an integer >= 1, got 0."),
    ):
        with refuses(ArgumentError, text):
            open_video(source, **options)
    rates = "open_video: expected a frame_rate from 1 per hour to 1,000,000 per second, got"
    for wrong in (1e-320, 1e-9, 1 / 3601, 1_000_001, 1e300):
        with refuses(ArgumentError, f"{rates} {wrong}."):
            open_video(array, frame_rate=wrong)
    for right in (Fraction(1, 3600), 1_000_000):
        assert open_video(array, frame_rate=right).info.frame_rate == pytest.approx(right)
    for wrong in (array[0], array.astype(float), array[..., :2], array[:0]):
        with refuses(ArgumentError, "expected frames of shape (T, H, W, 3) and dtype uint8"):
            open_video(wrong, frame_rate=1)
    with open_video(path) as video:
        for wrong in (0, -1, math.nan, "x", 1e12):
            with refuses(ArgumentError, "expected fps in (0, 1000]"):
                video.sample(wrong)
        video.sample(1)
        with refuses(VideoError, f"{path}: expected to be read once, got a second reading."):
            video.sample(1)
    for source, options in ((path, {}), (array, {"frame_rate": 1})):
        with open_video(source, **options) as video:
            frames = video.sample(2)
            next(frames)
        with refuses(VideoError, ": expected to be open while it is read, got a closed video."):
            list(frames)


def test_frames_are_decoded_one_at_a_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", SIXTY)
    seen = []
    with open_video(path) as video:
        for frame in video.sample(10):
            seen.append(weakref.ref(frame.image))
            assert sum(image() is not None for image in seen) <= 2
    assert len(seen) == 60


def test_without_pyav_only_arrays_can_be_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\1")
    text = "decoding videos needs the package av, which is not installed."
    with refuses(MissingDependencyError, text):
        open_video(path)
    array = np.zeros((2, 4, 4, 3), np.uint8)
    assert len(intact(array, 1, frame_rate=1)[0]) == 2


def test_real_video(data_root):
    real_video = data_root / "video" / "nasa_13013.mp4"
    info = probe_video(real_video)
    assert (info.width, info.height, info.codec, info.start) == (480, 270, "h264", 0)
    assert info.duration == pytest.approx(13.013)
    assert info.frame_rate == pytest.approx(30_000 / 1001)
    frames, video = intact(real_video, 2)
    assert [frame.time for frame in frames] == [index / 2 + 0.25 for index in range(26)]
    assert frames[0].image.shape == (270, 480, 3)
    assert video.duration == pytest.approx(13.013)
    for frame in frames:
        assert 0 <= frame.time - frame.shown_from < 1001 / 30_000 + 1e-9
    # Every frame, at the frame rate of the file.
    rate = Fraction(30_000, 1001)
    starts = [frame.shown_from for frame in intact(real_video, rate)[0]]
    assert len(starts) == 390
    assert all(after - before == pytest.approx(1 / rate) for before, after in pairwise(starts))


@pytest.mark.process
@pytest.mark.parametrize(
    ("codec", "size", "rounds"), [("mpeg4", (240, 320), 300), ("libx264", (720, 1280), 6)]
)
@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_damage_that_would_be_logged_blocks_nothing(tmp_path, codec, size, rounds, end):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in TENTHS[1:13]]
    options = {"codec": codec, "time_base": Fraction(1, 10)}
    path = write_video(tmp_path / "a.avi", TENTHS[:13], images=images, **options)
    content = bytearray(path.read_bytes())
    for place in range(content.index(b"00dc") + 40_000, content.index(b"idx1"), 50):
        content[place] ^= 0x55
    path.write_bytes(content)
    code = """
        import gc, sys, av.logging
        from tmapdiff.video import open_video

        path, rounds, end = sys.argv[1:]
        av.logging.set_level(av.logging.ERROR)
        for _ in range(int(rounds)):
            video = open_video(path, num_threads=4)
            next(video.sample(10))
            if end == "closed":
                video.close()
            del video
            if end == "dropped":
                gc.collect()
    """
    if end == "dropped":
        rounds = min(rounds, 30)
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(rounds), end]
    subprocess.run(command, check=True, timeout=240, stderr=subprocess.DEVNULL)


def test_decoders_enforce_the_largest_frame_size(tmp_path):
    path = write_video(tmp_path / "a.webm", TENTHS, codec="libvpx")
    content = path.read_bytes()
    # In the headers of VP8's frames; the file still declares 64 x 32.
    headers = re.compile(rb"(\x9d\x01\x2a)....", re.DOTALL)
    size = (12_000).to_bytes(2, "little")
    path.write_bytes(headers.sub(lambda found: found[1] + 2 * size, content))
    with refuses(VideoError, "expected frames, got none that can be decoded (Invalid argument)."):
        open_video(path)
    assert probe_video(path, max_pixels=2**28).width == 12_000
