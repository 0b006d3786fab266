"""Display times of frames: joined files, B-frames, clocks that go back or jump."""

import re
from fractions import Fraction
from types import SimpleNamespace

import pytest
from helpers.videos import evenly, number_image, read_numbers, sampled, shown, write_video
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff.video.timeline import Timeline

av = pytest.importorskip("av")

PERIOD = Fraction(1, 10)
TICKS = Fraction(1, 90_000)
# Suffix, FFmpeg's format (None: by suffix), codec, B-frames between others, time base.
JOINED = [
    ("ts", None, "libx264", 2, TICKS),
    ("ts", None, "mpeg2video", 2, PERIOD),
    ("m2ts", "mpegts", "libx264", 0, TICKS),
    ("mpg", None, "mpeg2video", 2, PERIOD),
    ("vob", "vob", "mpeg2video", 2, PERIOD),
    ("mkv", None, "libx264", 2, Fraction(1, 1000)),
    ("mkv", None, "mpeg4", 0, Fraction(1, 1000)),
    ("webm", None, "libvpx", None, Fraction(1, 1000)),
    ("avi", None, "mpeg4", 2, PERIOD),
]
MAY_RESTART = {"ts", "m2ts", "mpg", "vob"}


def write(path, times, first=0, **options):
    images = [number_image(first + index) for index in range(len(times) - 1)]
    return write_video(path, times, images=images, **{"b_frames": 2, "time_base": TICKS, **options})


def write_joined(folder, kind, *parts):
    """Write parts of a kind of file, each with its first number, and join them as `cat` does."""
    suffix, *values = kind
    options = dict(zip(("format", "codec", "b_frames", "time_base"), values, strict=True))
    files = [write(folder / f"{first}.{suffix}", times, first, **options) for first, times in parts]
    whole = folder / f"joined.{suffix}"
    whole.write_bytes(b"".join(file.read_bytes() for file in files))
    return whole


def place_all(clock, start=Fraction(0), may_restart=True):
    """Return the times of a clock's frames, and the timeline; the first frame is shown at 0."""
    timeline = Timeline(
        clock.frames[0],
        start,
        start,
        "shown",
        period=PERIOD,
        longest_gap=Fraction(10),
        may_restart=may_restart,
    )
    return [timeline.place(frame) for frame in clock.frames], timeline


@pytest.mark.parametrize("kind", JOINED, ids=str)
@pytest.mark.parametrize(("one", "two"), [(20, 60), (40, 15)])
def test_joined_files_are_shown_one_after_the_other(tmp_path, kind, one, two):
    path = write_joined(tmp_path, kind, (1, evenly(one)), (101, evenly(two)))
    frames, video = sampled(path, 10)
    expected = [*range(1, one + 1), *range(101, two + 101)]
    assert read_numbers(frames) == expected
    starts = [frame.shown_from for frame in frames]
    assert starts == pytest.approx([index / 10 for index in range(one + two)])
    assert video.duration == pytest.approx((one + two) / 10)
    assert len(sampled(path, 2)[0]) == (one + two) // 5
    if kind[0] in MAY_RESTART:
        assert video.damage is None
    elif kind[0] != "avi":  # which counts frames, so that nothing goes back
        assert "its timestamps go back from" in video.damage


@pytest.mark.parametrize("kind", JOINED[:-1], ids=str)
def test_a_clock_that_jumps_does_not_show_one_frame_for_an_hour(tmp_path, kind):
    path = write_joined(tmp_path, kind, (1, evenly(40)), (101, evenly(40, start=3000)))
    numbers, video = shown(path)
    assert numbers == [*range(1, 41), *range(101, 141)]
    assert video.duration == pytest.approx(8.0)
    assert re.search(r"its timestamps jump from 3\.\d+ s to (2999|3000)\.\d+ s", video.damage)


@pytest.mark.parametrize(
    ("suffix", "codec", "base"),
    [
        ("ts", "libx264", TICKS),
        ("mp4", "libx264", TICKS),
        ("mkv", "libx264", Fraction(1, 1000)),
        ("webm", "libvpx", Fraction(1, 1000)),
    ],
)
def test_a_frame_every_ten_seconds_stays_so(tmp_path, suffix, codec, base):
    times = evenly(12, period=Fraction(10))
    path = write(tmp_path / f"a.{suffix}", times, codec=codec, b_frames=0, time_base=base)
    frames, video = sampled(path, Fraction(1, 10))
    count = 11 if suffix == "ts" else 12  # ts does not declare how long the last one is shown
    assert read_numbers(frames) == list(range(count))
    assert [frame.shown_from for frame in frames] == pytest.approx([10 * i for i in range(count)])
    assert video.damage is None


@pytest.mark.parametrize("format", ["mpeg", "vob", "dvd", "svcd"])
@pytest.mark.parametrize("b_frames", [0, 1, 2])
def test_small_frames_of_program_streams_are_all_shown(tmp_path, format, b_frames):
    """Several share a packet, which declares the time of one."""
    options = {"format": format, "codec": "mpeg2video", "b_frames": b_frames, "time_base": PERIOD}
    path = write(tmp_path / "a.mpg", evenly(100), 1, **options)
    numbers, video = shown(path)
    assert list(dict.fromkeys(numbers)) == list(range(1, 101))
    assert numbers == sorted(numbers)
    assert video.duration == pytest.approx(10.0, abs=0.4)
    assert video.damage is None


# Formats without display times.
DECODING_ONLY = [
    ("avi", None, "mpeg4", 1),
    ("avi", None, "mpeg4", 2),
    ("avi", None, "libx264", 2),
    ("avi", None, "mpeg2video", 2),
    ("m2v", "mpeg2video", "mpeg2video", 2),
    ("m1v", "mpeg1video", "mpeg1video", 2),
    ("m4v", "m4v", "mpeg4", 2),
    ("h264", "h264", "libx264", 2),
    ("mjpeg", "mjpeg", "mjpeg", None),
]


@pytest.mark.parametrize(("suffix", "format", "codec", "b_frames"), DECODING_ONLY)
@pytest.mark.parametrize("num_threads", [1, 4])
def test_frames_of_formats_without_display_times(
    tmp_path, suffix, format, codec, b_frames, num_threads
):
    period = Fraction(1, 25)
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"format": format, "codec": codec, "b_frames": b_frames, "pix_fmt": pixels}
    times = {"time_base": period, "rate": 25, "gop": 12}
    path = write(tmp_path / f"a.{suffix}", evenly(48, period=period), 1, **options, **times)
    frames, video = sampled(path, 25, num_threads=num_threads)
    assert read_numbers(frames) == list(range(1, 49))
    assert [frame.shown_from for frame in frames] == pytest.approx([i / 25 for i in range(48)])
    assert video.info.start == 0
    assert video.duration == pytest.approx(48 / 25)
    assert video.info.duration in (None, pytest.approx(48 / 25))
    assert video.damage is None


@pytest.mark.parametrize("b_frames", [0, 1, 2])
def test_avi_with_sound_shows_frames_when_they_are_heard(tmp_path, b_frames):
    options = {"codec": "mpeg4", "b_frames": b_frames, "time_base": PERIOD, "sound": (0, 3)}
    path = write(tmp_path / "a.avi", evenly(30), 1, **options)
    numbers, video = shown(path)
    assert numbers == list(range(1, 31))
    assert (video.info.start, video.damage) == (0, None)


VOP = b"\x00\x00\x01\xb6"
EMPTY_VOP = VOP + b"\x50\x9f"  # a P-frame that is not coded: the one before is shown on


def packets_of(path):
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        return [(bytes(packet), packet.is_keyframe) for packet in packets]


def write_packets(path, packets, codec="mpeg4"):
    """Write packets, one per period, as a container does that knows no other order."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.codec_context.time_base = PERIOD
        for index, (content, is_keyframe) in enumerate(packets):
            packet = av.Packet(content)
            packet.pts = packet.dts = index
            packet.duration, packet.time_base, packet.stream = 1, PERIOD, stream
            packet.is_keyframe = is_keyframe
            file.mux(packet)
    return path


def packed(packets):
    """Pack B-frames as XviD does: the first with the frame behind it, which then is empty."""
    kind = [content[content.index(VOP) + 4] >> 6 for content, _ in packets]  # 2 is a B-frame
    done, index = [], 0
    while index < len(packets):
        content, is_keyframe = packets[index]
        if is_keyframe:
            head = content.index(VOP)
            content = content[:head] + b"\x00\x00\x01\xb2DivX503b1393p" + content[head:]
        end = index + 1
        while end < len(packets) and kind[end] == 2:
            end += 1
        between = [content for content, _ in packets[index + 1 : end]]
        done.append((content + b"".join(between[:1]), is_keyframe))
        done += [(content, False) for content in between[1:]]
        done += [(EMPTY_VOP, False)] * bool(between)
        index = end
    return done


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
@pytest.mark.parametrize("b_frames", [1, 2])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_packed_b_frames_are_all_shown_in_order(tmp_path, suffix, b_frames, num_threads):
    options = {"codec": "mpeg4", "b_frames": b_frames, "time_base": PERIOD, "gop": 12}
    packets = packets_of(write(tmp_path / "plain.avi", evenly(48), 1, **options))
    chunks = packed(packets)
    assert sum(content.count(VOP) for content, _ in chunks) > len(packets)
    path = write_packets(tmp_path / f"packed.{suffix}", chunks)
    frames, video = sampled(path, 10, num_threads=num_threads)
    assert read_numbers(frames) == list(range(1, 49))
    assert [frame.shown_from for frame in frames] == pytest.approx([i / 10 for i in range(48)])
    assert video.damage is None


def test_a_frame_that_was_dropped_moves_no_other(tmp_path):
    options = {"codec": "mpeg4", "b_frames": 0, "time_base": PERIOD}
    packets = packets_of(write(tmp_path / "plain.avi", evenly(20), 1, **options))
    dropped = [*packets[:7], *[(EMPTY_VOP, False)] * 5, *packets[7:]]
    numbers, video = shown(write_packets(tmp_path / "a.avi", dropped))
    assert numbers == [*range(1, 8), *[7] * 5, *range(8, 21)]
    assert video.damage is None


def test_times_of_decoding_where_those_of_showing_belong_are_noticed(tmp_path):
    options = {"b_frames": 2, "time_base": Fraction(1, 1000), "gop": 12}
    with av.open(str(write(tmp_path / "plain.mkv", evenly(48), 1, **options))) as file:
        source = file.streams.video[0]
        with av.open(str(tmp_path / "a.mkv"), "w") as new:
            stream = new.add_stream_from_template(source)
            for index, packet in enumerate(one for one in file.demux(source) if one.size):
                packet.pts = packet.dts = 100 * index
                packet.stream = stream
                new.mux(packet)
    numbers, video = shown(tmp_path / "a.mkv")
    assert "its timestamps are not in the order of its frames" in video.damage
    assert len(numbers) == 48
    assert numbers == sorted(numbers)
    assert numbers[12:] == list(range(13, 49))


def test_the_first_frame_that_can_be_shown_is_at_time_0(tmp_path):
    """A recording that begins in the middle: B-frames before the first key frame are lost."""
    path = write(tmp_path / "a.ts", evenly(40), 1, codec="mpeg2video", time_base=PERIOD, gop=12)
    content = path.read_bytes()
    with av.open(str(path)) as file:
        second = [packet for packet in file.demux(video=0) if packet.is_keyframe][1].pos
    path.write_bytes(content[: 188 * 3] + content[second:])
    frames, video = sampled(path, 10)
    numbers = read_numbers(frames)
    assert numbers == list(range(numbers[0], 41))
    assert numbers[0] > 10
    assert frames[0].shown_from == 0
    assert video.duration == pytest.approx(len(numbers) / 10)


class Clock:
    """Frames as decoders return them, with their pts and the dts of the current packet."""

    def __init__(self, delay):
        self.delay = delay
        self.frames = []

    def run(self, start, count):
        for index in range(count):
            pts = start + index
            frame = SimpleNamespace(pts=pts, dts=pts, duration=1, time_base=PERIOD)
            self.frames.append(frame)
        # The last ones are returned upon the packets that follow.
        for index in range(1, min(self.delay, count) + 1):
            self.frames[-index].dts = None


def test_one_frame_out_of_order_moves_no_other():
    """A decoder that notices B-frames late returns a frame too early."""
    clock = Clock(0)
    clock.run(0, 40)
    clock.frames[20].pts, clock.frames[21].pts, clock.frames[22].pts = 22, 20, 21
    places, timeline = place_all(clock)
    starts = [start * 10 for start, _ in places]
    assert starts[:21] == [*range(20), 22]
    assert starts[21:23] == [22, 22]
    assert starts[23:] == list(range(23, 40))
    assert timeline.problem.startswith("its timestamps are not in the order of its frames")


@settings(max_examples=60, deadline=None)
@given(
    delay=st.integers(0, 3),
    parts=st.lists(
        st.tuples(st.integers(-(10**6), 10**6), st.integers(5, 30)), min_size=1, max_size=6
    ),
    may_restart=st.booleans(),
)
def test_whatever_clocks_do_every_frame_is_shown_once(delay, parts, may_restart):
    clock, expected, end = Clock(delay), [], None
    for start, count in parts:
        if end is not None and end - delay - 1 <= start < end:
            start = end  # an overlap of less than the decoder's delay
        clock.run(start, count)
        # Gaps of up to ten seconds are kept; otherwise frames follow each other.
        gap = 0 if end is None or not 0 <= start - end <= 100 else start - end
        begin = expected[-1] + 1 + gap if expected else 0
        expected += [begin + index for index in range(count)]
        end = start + count
    places, _ = place_all(clock, Fraction(parts[0][0], 10), may_restart)
    assert [start * 10 for start, _ in places] == expected
    assert all(end - start == PERIOD for start, end in places)
