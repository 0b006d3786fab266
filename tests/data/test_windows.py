import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff.data import Annotation
from tmapdiff.data.dataset import draw_window

CLIPS = 8


@st.composite
def annotations(draw):
    clip_seconds = draw(st.sampled_from([0.5, 0.64, 1.0, 2.0]))
    video_clips = draw(st.integers(CLIPS + 1, 40))
    # The last clip may end after the video.
    duration = (video_clips - draw(st.floats(0, 0.9))) * clip_seconds
    ends = st.floats(0, duration, allow_subnormal=False)
    moments = [tuple(sorted(draw(st.tuples(ends, ends)))) for _ in range(draw(st.integers(1, 4)))]
    moments = [(s, e) for s, e in moments if e - s > 1e-3] or [(0.0, duration)]
    return Annotation(3, "v", "a sentence", duration, tuple(moments)), clip_seconds, video_clips


@settings(max_examples=300, deadline=None)
@given(annotations(), st.integers(0, 2**31))
def test_every_window_holds_a_moment(case, seed):
    item, clip_seconds, video_clips = case
    torch.manual_seed(seed)
    first, window = draw_window(item, clip_seconds, CLIPS, video_clips)
    assert isinstance(first, int)
    assert 0 <= first <= video_clips - CLIPS
    begin, length = first * clip_seconds, CLIPS * clip_seconds
    end = min(begin + length, item.duration)
    assert window.duration == pytest.approx(end - begin)

    found = [(s + begin, e + begin) for s, e in window.moments]
    whole, most = 0, 0.0
    for start, stop in item.moments:
        inside = max(0.0, min(stop, end) - max(start, begin))
        share = inside / (stop - start)
        # Clips of a window that starts and ends on clips of the moment's own.
        needed = math.ceil(stop / clip_seconds) - math.floor(start / clip_seconds)
        whole += share > 1 - 1e-9
        if needed > CLIPS:
            most = max(most, inside)
        kept = (max(start, begin), min(stop, end))
        cut = [pair for pair in found if pair == pytest.approx(kept, abs=1e-9)]
        if share > 0.5 + 1e-9:
            assert cut
        elif share < 0.5 - 1e-9 and needed <= CLIPS:  # not the one that the window was drawn for
            assert not cut
    assert whole or most > length - clip_seconds - 1e-9
    # Nothing but moments of the video, cut to the window.
    cuts = [pytest.approx((max(s, begin), min(e, end)), abs=1e-9) for s, e in item.moments]
    assert all(pair in cuts for pair in found)


def test_every_place_that_holds_the_moment_is_as_likely():
    item = Annotation(0, "v", "a", 30.0, ((12.5, 15.0),))
    torch.manual_seed(0)
    counts = Counter(draw_window(item, 1.0, CLIPS, 30)[0] for _ in range(6000))
    assert sorted(counts) == [7, 8, 9, 10, 11, 12]
    assert all(count == pytest.approx(1000, abs=150) for count in counts.values())


def test_every_moment_is_as_likely():
    item = Annotation(0, "v", "a", 60.0, ((1.0, 2.0), (20.0, 21.0), (50.0, 51.0)))
    torch.manual_seed(0)
    windows = [draw_window(item, 1.0, CLIPS, 60) for _ in range(3000)]
    assert all(len(window.moments) == 1 for _, window in windows)
    starts = [first for first, _ in windows]
    for low, high in ((0, 1), (13, 20), (43, 50)):
        inside = sum(low <= start <= high for start in starts)
        assert inside == pytest.approx(1000, abs=120)


@pytest.mark.parametrize("clip_seconds", [0.64, 1 / 6, 0.7, 0.32, 0.5])
def test_a_moment_of_just_the_window_s_clips_is_inside(clip_seconds):
    for first in range(20):
        moment = (first * clip_seconds, (first + CLIPS) * clip_seconds)
        item = Annotation(0, "v", "a", 40 * clip_seconds, (moment,))
        assert draw_window(item, clip_seconds, CLIPS, 40)[0] == first


def test_half_of_another_moment_is_too_little():
    item = Annotation(0, "v", "a", 12.0, ((0.0, 8.0), (6.0, 10.0)))
    torch.manual_seed(0)
    drawn = [draw_window(item, 1.0, CLIPS, 12) for _ in range(20)]
    assert {window.moments for first, window in drawn if first == 0} == {((0.0, 8.0),)}
