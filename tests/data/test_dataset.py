import math
import pickle
from collections import Counter

import pytest
import torch
from helpers.assertions import refuses
from helpers.processes import forks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tmapdiff.data import (
    ActionTimelineFeatures,
    Annotation,
    AnnotationSet,
    MomentBatch,
    MomentDataset,
    SyntheticActivities,
    Vocabulary,
    collate_moments,
    pool_features,
)
from tmapdiff.data.dataset import draw_window
from tmapdiff.errors import ArgumentError, FeatureError, MissingFeatureError, ShapeError


class CountingStore:
    feature_dim = 3
    seconds_per_feature = None
    description = "features that count"

    def __init__(self):
        self.reads = 0

    def __contains__(self, video_id):
        return video_id in ("A", "B", "wide", "stride")

    def __getitem__(self, video_id):
        self.reads += 1
        if video_id == "broken":
            raise RuntimeError("disk\non fire")
        if video_id not in self:
            raise MissingFeatureError(f"no features of {video_id}.")
        width = 4 if video_id == "wide" else 3
        return torch.arange(6.0 * width).reshape(6, width) + ord(video_id[0])


ANNOTATIONS = AnnotationSet(
    [
        Annotation("q1", "A", "a person sits down.", 10.1, ((1.0, 2.5),)),
        Annotation("q2", "B", "it falls.", 31.7, ((0.0, 31.7), (3.3, 4.4), (5.0, 6.0))),
        Annotation("q3", "A", "the end", 10.1, ((9.0, 10.1), (1.0, 2.0))),
    ]
)
VOCABULARY = Vocabulary.from_sentences(item.query for item in ANNOTATIONS)


def dataset(annotations=ANNOTATIONS, store=None, vocabulary=VOCABULARY, **fields):
    store = store or CountingStore()
    return MomentDataset(annotations, store, vocabulary, **{"num_clips": 4, **fields})


def test_a_batch_holds_what_the_annotations_say():
    data = dataset()
    batch = collate_moments([data[index] for index in range(3)])
    assert len(data) == len(batch) == 3
    assert batch.features.shape == (3, 4, 3)
    assert batch.words.shape == (3, 4)
    assert batch.moments.shape == (3, 3, 2)
    for tensor in (batch.features, batch.moments, batch.clip_seconds, batch.durations):
        assert tensor.dtype == torch.float32
    for tensor in (batch.words, batch.num_words, batch.num_moments):
        assert tensor.dtype == torch.int64
    for row, item in enumerate(ANNOTATIONS):
        num_words, num_moments = int(batch.num_words[row]), int(batch.num_moments[row])
        words = [VOCABULARY.words[index] for index in batch.words[row, :num_words]]
        assert words == item.query.rstrip(".").split()
        assert not batch.words[row, num_words:].any()
        assert num_moments == len(item.moments)
        assert torch.equal(batch.moments[row, :num_moments], torch.tensor(item.moments))
        assert not batch.moments[row, num_moments:].any()
        assert batch.clip_seconds[row] == torch.tensor(item.duration / 4)
        assert float(batch.durations[row]) <= item.duration
        assert float(batch.durations[row]) == pytest.approx(item.duration, rel=1e-6)
        pooled = pool_features(CountingStore()[item.video_id], 4, duration=item.duration)
        assert torch.equal(batch.features[row], pooled)
    assert batch.qids == ["q1", "q2", "q3"]
    assert batch.video_ids == ["A", "B", "A"]
    assert batch.queries == [item.query for item in ANNOTATIONS]
    assert batch.num_clips is batch.to("cpu").num_clips is None
    assert repr(batch) == "MomentBatch(3 queries, features (3, 4, 3), cpu)"


@pytest.mark.parametrize(("cache", "reads"), [(True, 2), (False, 6)])
def test_cache_reads_a_video_once(cache, reads):
    store = CountingStore()
    data = dataset(store=store, cache=cache)
    for _ in range(2):
        for index in range(3):
            data[index]
    assert store.reads == reads
    # The cache does not travel to workers.
    assert bool(data._pooled) == cache
    twin = pickle.loads(pickle.dumps(data))
    assert not twin._pooled
    assert torch.equal(twin[0].features, data[0].features)


@pytest.mark.parametrize("cache", [True, False])
def test_what_a_user_does_to_a_sample_stays_there(cache):
    data = dataset(cache=cache)
    expected = dataset()[0].features
    for _ in range(3):
        data[0].features.fill_(-1)
    assert torch.equal(data[0].features, expected)
    batch = collate_moments([data[0]])
    batch.features.fill_(-1)
    batch.words.fill_(-1)
    assert torch.equal(data[0].features, expected)
    assert (data[0].words > 0).all()


def test_durations_of_one_video_may_differ():
    durations = (6.0, 5.0)
    items = [Annotation(n, "A", "a person", one, ((0, 1),)) for n, one in enumerate(durations)]
    store = CountingStore()
    store.seconds_per_feature = 1.0
    data = dataset(AnnotationSet(items), store)
    for index, duration in enumerate(durations):
        expected = pool_features(store["A"], 4, duration=duration, seconds_per_feature=1.0)
        assert torch.equal(data[index].features, expected)


@pytest.mark.parametrize("workers", [0])
def test_data_loader(workers):
    made = SyntheticActivities(num_videos=6)
    store = ActionTimelineFeatures(made.videos, num_classes=made.num_classes)
    vocabulary = Vocabulary.from_sentences(item.query for item in made.annotations)
    data = MomentDataset(made.annotations, store, vocabulary, num_clips=16)
    loader = DataLoader(data, batch_size=7, num_workers=workers, collate_fn=collate_moments)
    batches = list(loader)
    assert sum(map(len, batches)) == len(made.annotations)
    assert [qid for batch in batches for qid in batch.qids] == list(range(len(made.annotations)))
    assert all(isinstance(batch, MomentBatch) for batch in batches)
    assert torch.equal(batches[0].features[0], data[0].features)


@forks
def test_data_loader_with_workers():
    test_data_loader(workers=2)


def test_to_moves_every_tensor_but_the_lengths_that_the_lstm_reads():
    batch = collate_moments([dataset()[1]])
    moved = batch.to("meta", non_blocking=True)
    tensors = [name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7
    places = {name: getattr(moved, name).device.type for name in tensors}
    assert places.pop("num_words") == "cpu"
    assert set(places.values()) == {"meta"}
    assert (moved.qids, moved.video_ids, moved.queries) == (["q2"], ["B"], ["it falls."])
    assert batch.features.device.type == "cpu"


def test_pin_memory_pins_every_tensor(monkeypatch):
    batch = collate_moments([dataset()[1]])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # needs a GPU
    pinned = batch.pin_memory()
    assert torch.equal(pinned.features, batch.features + 1)
    assert torch.equal(pinned.num_words, batch.num_words + 1)
    assert pinned.qids == batch.qids


def one(video_id="A", query="a person"):
    return AnnotationSet([Annotation(7, video_id, query, 5.0, ((0.0, 1.0),))])


@pytest.mark.parametrize(
    ("kind", "video_id", "text"),
    [
        (MissingFeatureError, "Z", "no features of Z."),
        (FeatureError, "broken", "RuntimeError("),
        (ShapeError, "wide", "with D = 3, got (6, 4)."),
        (FeatureError, "stride", "cover the 5 s of the video"),
    ],
)
def test_errors_name_video_and_query(kind, video_id, text):
    store = CountingStore()
    store.seconds_per_feature = 100.0 if video_id == "stride" else None
    with refuses(kind, text, f" (video '{video_id}', query 7: 'a person')"):
        dataset(one(video_id), store)[0]


def test_bad_arguments():
    with refuses(ArgumentError, "expected at least one annotation, got none. They come"):
        dataset(ANNOTATIONS[:0])
    with refuses(ArgumentError, "with a word, got '?!'. (video 'A', query 7)"):
        dataset(one(query="?!"))
    with refuses(ArgumentError, "expected at least one sample, got none"):
        collate_moments([])
    samples = [dataset(num_clips=4)[0], dataset(num_clips=8)[0]]
    with refuses(ShapeError, "expected features of shape (N, D) with N = 4, D = 3"):
        collate_moments(samples)
    with pytest.raises(IndexError):
        dataset()[3]


def of_features(word_features, vocabulary=None):
    return dataset(vocabulary=vocabulary, word_features=word_features)


def test_features_of_words_take_the_place_of_their_indices():
    made = {item.query: torch.randn(3 - n, 5) for n, item in enumerate(ANNOTATIONS)}
    data = of_features(made)
    batch = collate_moments([data[index] for index in range(3)])
    assert batch.num_words.tolist() == [3, 2, 1]
    assert batch.words.shape == (3, 3, 5)
    for item, row in zip(ANNOTATIONS, batch.words, strict=True):
        length = len(made[item.query])
        assert torch.equal(row[:length], made[item.query])
        assert not row[length:].any()


def test_the_digest_of_queries_tells_them_from_others():
    made = {item.query: torch.ones(2, 5) for item in ANNOTATIONS}
    first = of_features(made).queries_sha256
    twin = of_features({key: one.clone() for key, one in made.items()})
    assert twin.queries_sha256 == first
    for other in (torch.ones(5, 2), torch.ones(2, 5) + 1e-6, torch.ones(2, 5).double()):
        assert of_features({**made, "it falls.": other}).queries_sha256 != first
    assert of_features(None, VOCABULARY).queries_sha256 != first


def test_refuses_bad_features_of_words():
    made = {item.query: torch.ones(2, 5) for item in ANNOTATIONS}
    where = "(video 'B', query 'q2')"
    for kind, changed, text in (
        (ArgumentError, None, f"word_features of every query, got none of 'it falls.'. {where}"),
        (ArgumentError, torch.ones(0, 5), "word_features of at least one word, got none of"),
        (ShapeError, torch.ones(5), "expected word_features of shape (L, C)"),
        (ArgumentError, torch.full((2, 5), torch.nan), "finite word_features, got NaN or inf"),
    ):
        with refuses(kind, text, where):
            of_features({**made, "it falls.": changed})


# Clips of one length: windows and whole videos


class SecondsStore:
    """Each feature says at which second of the video its centre is."""

    feature_dim = 2
    description = "features that tell the time"

    def __init__(self, rate):
        self.seconds_per_feature = rate

    def __contains__(self, video_id):
        return True

    def __getitem__(self, video_id):
        duration = float(video_id)
        features = max(1, round(duration / (self.seconds_per_feature or 0.25)))
        centres = (torch.arange(features) + 0.5) * (self.seconds_per_feature or duration / features)
        return torch.stack([centres, torch.ones(features)], dim=1)


def timed(duration, moments, rate=0.25, **kwargs):
    item = Annotation(0, f"{duration}", "a person sits down.", duration, moments)
    return dataset(AnnotationSet([item]), SecondsStore(rate), **{"clip_seconds": 1.0, **kwargs})


@settings(max_examples=20, deadline=None)
@given(st.floats(5.1, 30), st.floats(0, 0.8), st.integers(0, 99))
@pytest.mark.parametrize("rate", [0.2, 0.25, None])
def test_a_window_has_the_features_of_its_seconds(rate, duration, place, seed):
    start = place * duration
    moment = (start, min(start + 1.5, duration))
    torch.manual_seed(seed)
    sample = timed(duration, (moment,), rate)[0]
    (found,) = sample.annotation.moments
    opens = moment[0] - found[0]
    assert opens == pytest.approx(round(opens), abs=1e-6)
    assert found[1] - found[0] == pytest.approx(moment[1] - moment[0], abs=1e-6)
    assert sample.clip_seconds == 1.0
    assert sample.num_clips == 4
    assert sample.features.shape == (4, 2)
    # The mean of the centres inside a clip lies in it; a clip cut by the video's end has fewer.
    clips = (sample.features[:, 0] - opens - torch.arange(4)).tolist()
    assert all(0 <= clip <= 1 for clip in clips[:-1])
    assert -0.3 <= clips[-1] <= 1


@pytest.mark.parametrize(
    ("duration", "clips", "filled", "options"),
    [
        (2.5, 3, 4, {"whole_videos": False}),
        (2.5, 3, 4, {}),
        (2.5, 3, 8, {"num_clips": 8}),
        (4.0, 4, 4, {}),
        (4.5, 5, 6, {}),
        (6.0, 6, 6, {}),
        (6.0001, 7, 8, {}),
        (0.64 * 7, 7, 8, {"clip_seconds": 0.64}),  # an error of rounding is no clip
    ],
)
def test_videos_without_windows_are_filled_with_zeros(duration, clips, filled, options):
    options = {"whole_videos": True, "clip_multiple": 2, **options}
    data = timed(duration, ((1.0, 2.0),), **options)
    sample = data[0]
    assert (sample.num_clips, len(sample.features)) == (clips, filled)
    assert sample.features[:, 1].tolist() == [1] * clips + [0] * (filled - clips)
    assert sample.features[clips:].abs().sum() == 0
    whole = torch.arange(int(duration / sample.clip_seconds))
    centres = (whole + 0.5) * sample.clip_seconds
    torch.testing.assert_close(sample.features[whole, 0], centres, rtol=0, atol=0.13)
    assert sample.annotation is data.annotations[0]
    torch.testing.assert_close(data[0].features, sample.features)


@pytest.mark.parametrize("clip_seconds", [0.7, 1 / 6, 0.64])
def test_a_window_is_a_slice_of_the_whole_video(clip_seconds):
    moment = (30.2 * clip_seconds, 31.1 * clip_seconds)
    fields = {"clip_seconds": clip_seconds, "rate": clip_seconds / 3}
    duration = 60 * clip_seconds
    whole = timed(duration, (moment,), **fields, whole_videos=True)[0].features
    torch.manual_seed(0)
    data = timed(duration, (moment,), **fields)
    for _ in range(20):
        sample = data[0]
        opens = moment[0] - sample.annotation.moments[0][0]
        first = round(opens / clip_seconds)
        assert torch.equal(sample.features, whole[first : first + 4])


@pytest.mark.parametrize("whole_videos", [False, True])
def test_several_features_a_clip(whole_videos):
    moment = ((20.2, 20.4),)
    fields = {"whole_videos": whole_videos, "clip_multiple": 2}
    sample = timed(25.1, moment, features_per_clip=4, **fields)[0]
    clips = 26 if whole_videos else 4
    assert (sample.num_clips, sample.clip_seconds) == (clips, 1.0)
    assert sample.features.shape == (4 * clips, 2)
    opens = moment[0][0] - sample.annotation.moments[0][0]
    # Features of 0.25 s are the pieces of clips of 1 s: each goes to its own.
    centres = opens + 0.125 + 0.25 * torch.arange(4 * clips)
    inside = centres < 25
    torch.testing.assert_close(sample.features[inside, 0], centres[inside].float())
    # A model that averages them sees what it would see of one a clip.
    if whole_videos:
        single = timed(25.1, moment, **fields)[0]
        means = sample.features.unflatten(0, (clips, 4)).mean(1)
        torch.testing.assert_close(means[:25], single.features[:25])


def test_several_features_a_clip_of_a_short_video():
    sample = timed(2.5, ((1.0, 2.0),), features_per_clip=2, rate=0.5)[0]
    assert sample.num_clips == 3
    assert sample.features[:, 1].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    sample = dataset(features_per_clip=3)[0]
    assert (sample.features.shape, sample.num_clips) == ((12, 3), None)
    assert sample.clip_seconds == pytest.approx(10.1 / 4)


def test_a_batch_of_whole_videos_is_as_long_as_the_longest():
    items = [Annotation(i, f"{d}", "it sits", d, ((0.5, 1.5),)) for i, d in enumerate((3.0, 9.5))]
    fields = {"clip_seconds": 1.0, "whole_videos": True, "clip_multiple": 4}
    data = dataset(AnnotationSet(items), SecondsStore(0.25), **fields)
    batch = collate_moments([data[0], data[1]])
    assert batch.features.shape == (2, 12, 2)
    assert batch.num_clips.tolist() == [3, 10]
    assert batch.clip_seconds.tolist() == [1.0, 1.0]
    assert batch.durations.tolist() == [3.0, 9.5]
    assert batch.features[0, 3:].abs().sum() == 0
    assert batch.to("cpu").num_clips.tolist() == [3, 10]


def test_windows_change_and_repeat_with_torch_s_seed():
    data = timed(30.0, ((10.0, 11.0),))

    def starts():
        torch.manual_seed(3)
        return [float(data[0].features[0, 0]) for _ in range(10)]

    assert starts() == starts()
    assert len(set(starts())) > 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"vocabulary": None}, "expected a vocabulary or word_features, got none."),
        ({"word_features": {}}, "expected a vocabulary or word_features, got both."),
        ({"num_clips": 0}, "expected num_clips to be an integer >= 1, got 0"),
        ({"clip_seconds": 0}, "MomentDataset: expected clip_seconds in (0, inf), got 0."),
        ({"features_per_clip": 0}, "features_per_clip to be an integer >= 1, got 0."),
        ({"clip_multiple": 0}, "clip_multiple to be an integer >= 1, got 0."),
        ({"clip_multiple": 3}, "num_clips to be a multiple of clip_multiple = 3, got 4."),
        ({"clip_seconds": None, "whole_videos": True}, "expected clip_seconds for whole_videos,"),
    ],
)
def test_refuses_bad_settings(fields, text):
    with refuses(ArgumentError, text):
        timed(9.0, ((1.0, 2.0),), **fields)


# Windows of long videos

CLIPS = 8


@st.composite
def long_annotations(draw):
    clip_seconds = draw(st.sampled_from([0.5, 0.64, 1.0, 2.0]))
    video_clips = draw(st.integers(CLIPS + 1, 40))
    # The last clip may end after the video.
    duration = (video_clips - draw(st.floats(0, 0.9))) * clip_seconds
    ends = st.floats(0, duration, allow_subnormal=False)
    moments = [tuple(sorted(draw(st.tuples(ends, ends)))) for _ in range(draw(st.integers(1, 4)))]
    moments = [(s, e) for s, e in moments if e - s > 1e-3] or [(0.0, duration)]
    return Annotation(3, "v", "a sentence", duration, tuple(moments)), clip_seconds, video_clips


@settings(max_examples=300, deadline=None)
@given(long_annotations(), st.integers(0, 2**31))
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
