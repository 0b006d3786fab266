from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from helpers.assertions import refuses

from tmapdiff.data import SyntheticVideos, tokenize
from tmapdiff.errors import ArgumentError
from tmapdiff.video import open_video

COLORS = ("red", "blue", "green", "yellow")  # in the order of layouts
BACKGROUND = (238, 236, 230)


@pytest.fixture(scope="module")
def large():
    return SyntheticVideos(400)


@pytest.fixture(scope="module")
def small():
    return SyntheticVideos(8)


def test_videos_are_as_described(large):
    overlapping = 0
    for video in large.videos.values():
        assert 20 <= video.duration <= 40
        assert (video.duration * large.frame_rate).is_integer()
        shapes = {one.shape for one in video.actions}
        assert len({shape.split()[0] for shape in shapes}) == len(shapes) <= 3
        happened = [(one.shape, one.action) for one in video.actions]
        assert len(set(happened)) == len(happened)
        for one in video.actions:
            assert 0 <= one.start < one.end <= video.duration
            assert (one.start * large.frame_rate).is_integer()
            assert (one.end * large.frame_rate).is_integer()
            assert 1.3 <= one.end - one.start <= 10.2
        for shape in shapes:  # a shape does one thing at a time
            own = [(one.start, one.end) for one in video.actions if one.shape == shape]
            assert all(first[1] < second[0] for first, second in pairwise(own))
        times = [(one.start, one.end) for one in video.actions]
        overlapping += any(first[1] > second[0] for first, second in pairwise(times))
    assert 100 < overlapping < 390
    actions = Counter(one.action for video in large.videos.values() for one in video.actions)
    assert len(actions) == 11
    assert min(actions.values()) > 60


def test_sentences_tell_what_happens(large):
    meaning, wordings = defaultdict(set), defaultdict(set)
    for item in large.annotations:
        (moment,) = item.moments
        (one,) = [
            one
            for one in large.videos[item.video_id].actions
            if (one.start, one.end) == moment and one.shape.split()[0] in tokenize(item.query)
        ]
        meaning[item.query].add((one.shape, one.action))
        wordings[one.action].add(item.query)
    assert all(len(one) == 1 for one in meaning.values())
    assert all(len(one) > 40 for one in wordings.values())


def colored(frame):
    """For each colour, which pixels have it, however pale: the nearest hue, if there is any."""
    hues = np.array([(214, 40, 40), (36, 88, 214), (32, 150, 72), (240, 180, 20)], float)
    rays = hues - BACKGROUND
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    away = frame.astype(float) - BACKGROUND
    length = np.linalg.norm(away, axis=2)
    nearest = (away @ rays.T).argmax(axis=2)
    return [(nearest == color) & (length > 40) for color in range(4)]


def test_frames_show_the_layout(small):
    """Where pixels of a colour are is where the layout says, and how large."""
    checked = 0
    for video_id in small.videos:
        frames, layout = small.frames(video_id), small.layout(video_id)
        assert frames.dtype == np.uint8
        assert frames.shape == (len(layout), 96, 96, 3)
        for index in range(0, len(layout), 12):
            shown = layout[index, :, 0] > 0.6
            places = layout[index, :, 1:3] / np.maximum(layout[index, :, :1], 1e-6)
            apart = [
                np.abs(places[color] - places[other]).max()
                for color in np.flatnonzero(shown)
                for other in np.flatnonzero(layout[index, :, 0])
                if color < other
            ]
            if min(apart, default=9) < 0.85:
                continue  # one may cover the other
            for color, pixels in enumerate(colored(frames[index])):
                assert pixels.any() == shown[color] or 0 < layout[index, color, 0] <= 0.6
                if shown[color]:
                    rows, columns = np.nonzero(pixels)
                    middle = [(columns.min() + columns.max()) / 96, (rows.min() + rows.max()) / 96]
                    assert np.abs(np.array(middle) - 1 - places[color]).max() < 0.13
                    checked += 1
    assert checked > 100


def test_what_moves_moves_when_it_is_said(large):
    """Outside its moments a shape is still; within one, what changes is what is said."""
    column = {"left": 1, "right": 1, "up": 2, "down": 2, "grow": 3, "shrink": 3,
              "appear": 0, "disappear": 0, "blink": 0, "jump": 2, "spin": 4}  # fmt: skip
    sign = {"left": -1, "up": -1, "shrink": -1, "disappear": -1, "right": 1, "down": 1, "grow": 1,
            "appear": 1}  # fmt: skip
    for video_id in list(large.videos)[:40]:
        video, layout = large.videos[video_id], large.layout(video_id)
        still = np.ones(layout.shape[:2], bool)
        for one in video.actions:
            color = COLORS.index(one.shape.split()[0])
            first, last = (round(time * large.frame_rate) for time in (one.start, one.end))
            still[first:last, color] = False
            during = layout[first:last, color]
            if one.action in sign:
                change = np.diff(during[:, column[one.action]]) * sign[one.action]
                assert (change > 0).all()
                assert change.sum() > 0.15
            else:
                assert np.ptp(during[:, column[one.action]]) > 0.05
        moved = np.abs(np.diff(layout, axis=0)).max(axis=2)
        assert moved[still[1:] & still[:-1]].max(initial=0) < 1e-6


def test_some_frames(small):
    video_id = next(iter(small.videos))
    numbers = [5, 0, 17]
    np.testing.assert_array_equal(small.frames(video_id, numbers), small.frames(video_id)[numbers])
    np.testing.assert_array_equal(small.layout(video_id, numbers), small.layout(video_id)[numbers])
    larger = SyntheticVideos(8, size=128)
    assert larger.videos == small.videos
    assert larger.frames(video_id, [0]).shape == (1, 128, 128, 3)


def test_written_videos_show_the_same(small, tmp_path):
    pytest.importorskip("av")
    video_id = next(iter(small.videos))
    (path,) = small.write(tmp_path / "new", [video_id])
    assert path == tmp_path / "new" / f"{video_id}.mp4"
    frames = small.frames(video_id)
    with open_video(path) as video:
        read = np.stack([frame.image for frame in video.sample(small.frame_rate)])
        assert video.duration == pytest.approx(small.videos[video_id].duration)
        assert video.info.codec == "h264"
        assert video.damage is None
    assert read.shape == frames.shape
    assert np.abs(read.astype(float) - frames).mean() < 4


def test_arguments_are_checked(small):
    with refuses(ArgumentError, "expected size to be even, got 97"):
        SyntheticVideos(1, size=97)
    with refuses(ArgumentError, "expected one of its videos, got 'mine'"):
        small.frames("mine")
    for numbers in ([-1], [4000], [[0]], [0.5]):
        with refuses(ArgumentError, "expected numbers of frames from 0 to "):
            small.layout(next(iter(small.videos)), numbers)
