import json

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.text_encoders import tiny_text_encoder

from tmapdiff.data import Cue, FeatureStore, TextTrackFeatures, encode_text_track, load_text_track
from tmapdiff.errors import (
    AnnotationError,
    ArgumentError,
    ConfigError,
    FileError,
    MissingFeatureError,
    SizeLimitError,
)

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<i>Good</i> evening,
{\\an8}<font color="red">all</font>.

2
00:00:02,5 --> 00:01:03,000  X1:40 X2:600 Y1:20 Y2:50
3 < 4

of 42

3
102:00:00,000 --> 102:00:01,250
Late.
4
102:00:02,000 --> 102:00:02,000
Never seen.
5
102:00:03,000 --> 102:00:04,000
<b></b>

6
102:00:05.000 --> 102:00:06.000
2026
"""
VTT = """WEBVTT - a talk

STYLE
::cue { color: lime }

NOTE not a cue:
00:00.000 --> 00:01.000
nothing

opening
00:01.000 --> 00:02.500 align:start position:10%
<v Ann Lee>Good <c.loud>evening</c>, &amp; <00:00:02.000>welcome</v>

120:00:00.000 --> 120:00:01.000
Late.
this line, too

00:02.000 --> 00:03.000
- Before.
"""


def read(tmp_path, name, content, newline="\n"):
    path = tmp_path / name
    path.write_bytes(content.replace("\n", newline).encode())
    return [(cue.start, cue.end, cue.text) for cue in load_text_track(path)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\r\r\n"])
def test_texts_and_times_without_the_rest(tmp_path, newline):
    assert read(tmp_path, "talk.srt", SRT, newline) == [
        (1.0, 2.5, "Good evening, all."),
        (2.5, 63.0, "3 < 4 of 42"),
        (367_200.0, 367_201.25, "Late."),
        (367_205.0, 367_206.0, "2026"),
    ]
    assert read(tmp_path, "talk.vtt", VTT, newline) == [
        (1.0, 2.5, "Good evening, & welcome"),
        (2.0, 3.0, "- Before."),
        (432_000.0, 432_001.0, "Late. this line, too"),
    ]
    long = f"&#{'9' * 5000};"  # an entity that is none
    cues = f"WEBVTT\n\n00:01.000 --> 00:02.000\n{long}\n"
    assert read(tmp_path, "talk.vtt", cues, newline) == [(1.0, 2.0, long)]
    youtube = "WEBVTT\n\n00:00.160 --> 00:02.550 align:start\n \nwelcome<00:00.400><c> to</c>\n"
    assert read(tmp_path, "youtube.vtt", youtube, newline) == [(0.16, 2.55, "welcome to")]
    lines = [
        {"start": 5, "end": 6.5, "text": " and\nthen ", "id": 3},
        {"start": 1, "duration": 2, "text": "first"},
        {"start": 8, "end": 9, "text": ""},
    ]
    content = "\ufeff" + "\n\n".join(map(json.dumps, lines))
    assert read(tmp_path, "talk.JSONL", content, newline.replace("\r", "\n")) == [
        (1.0, 3.0, "first"),
        (5.0, 6.5, "and then"),
    ]


def test_what_is_no_track(tmp_path):
    for name, content, text in (
        ("x.vtt", "WEBVTT\n", "x.vtt: expected timed texts, got none."),
        ("x.vtt", "00:01 --> soon\nHello", "x.vtt line 1: expected times of a cue, such as"),
        ("x.vtt", "\n00:02.000 --> 00:01.000\nx", "line 2: expected a cue that ends after its sta"),
        ("x.vtt", "1234567:00:00 --> 1234567:00:01\nx", "line 1: expected times of a cue"),
        ("x.vtt", "00:00:01.000 --> 00:00:02.0000\nx", "line 1: expected times of a cue"),
        ("x.jsonl", '{"start": 1, "text": "x"}', "line 1: expected the field 'end', got the "),
        ("x.jsonl", '{"start": -1, "end": 2, "text": "x"}', "expected start to be a number >= 0"),
        ("x.jsonl", '{"start": 1, "end": 2, "text": 5}', "expected text to be a text, got 5."),
        ("x.jsonl", '{"start": NaN, "end": 2, "text": "x"}', "expected start to be a number >= 0"),
        ("x.jsonl", '{"start": 1e308, "duration": 1e308, "text": "x"}', "number, got inf."),
        ("x.jsonl", "[1]", "expected an object with the field 'start', got [1]."),
    ):
        with refuses(AnnotationError, f"{tmp_path}", text):
            read(tmp_path, name, content)
    (tmp_path / "x.srt").write_bytes(b"1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9")
    with refuses(AnnotationError, "x.srt line 3: expected UTF-8", "0xe9. Save it as UTF-8."):
        load_text_track(tmp_path / "x.srt")
    with refuses(FileError, "none.srt: No such file"):
        load_text_track(tmp_path / "none.srt")
    with refuses(ConfigError, "to be one of .srt, .vtt, .jsonl, got '.ass'."):
        load_text_track("talk.ass")
    # A line of JSON may be short, and all are kept.
    for name, what in (("large.srt", "a text"), ("large.jsonl", "a text track")):
        with open(tmp_path / name, "wb") as file:
            file.truncate(32 << 20)
        with refuses(SizeLimitError, f"{name}: expected {what} of at most"):
            load_text_track(tmp_path / name)


WORDS = ["good", "evening", "budget", "roads"]
CUES = [
    Cue(0.5, 2.0, "good evening"),
    Cue(1.75, 4.25, "budget"),  # overlaps both neighbours
    Cue(4.0, 4.5, "roads"),
    Cue(7.0, 7.5, "evening"),  # after a gap
]


def loops(cues, encoder, stride, count):
    """The definition: a mean over the time of each feature, a cue at a time."""
    rows = torch.zeros(count, encoder.sentence_channels, dtype=torch.float64)
    for row in range(count):
        for cue in cues:
            overlap = min(cue.end, (row + 1) * stride) - max(cue.start, row * stride)
            vector = encoder([cue.text]).sentences[0].double()
            rows[row] += max(overlap, 0) * vector / vector.norm()
    norms = rows.norm(dim=1, keepdim=True)
    return (rows / norms.clamp(min=1e-9)).float()


@pytest.mark.parametrize("stride", [0.3, 1.0, 2.0, 100.0])
def test_features_are_means_over_time_and_nothing_in_gaps(stride):
    encoder = tiny_text_encoder(WORDS)
    found = encode_text_track(CUES, encoder, seconds_per_feature=stride)
    count = {0.3: 25, 1.0: 8, 2.0: 4, 100.0: 1}[stride]
    expected = loops(CUES, encoder, stride, count)
    assert_close(found, expected)
    assert torch.equal(found.any(dim=1), expected.any(dim=1))
    if stride == 1.0:
        assert found.any(dim=1).tolist() == [True] * 5 + [False, False, True]


def test_a_video_may_be_longer_or_shorter_than_its_track():
    encoder = tiny_text_encoder(WORDS)
    longer = encode_text_track(CUES, encoder, duration=20)
    assert longer.shape == (20, 16)
    assert not longer[8:].any()
    shorter = encode_text_track(CUES, encoder, duration=2)
    assert_close(shorter, longer[:2])
    # Nor does its last feature have what is said later.
    cut = encode_text_track(CUES, encoder, duration=4.25, seconds_per_feature=3)
    until = [*CUES[:2], Cue(4, 4.25, "roads")]
    assert_close(cut, loops(until, encoder, 3, 2))
    # Rounding does not make something of nothing, however much was said.
    many = [Cue(one / 7, one / 7 + 0.3, "roads") for one in range(5000)] + [Cue(900, 901, "good")]
    found = encode_text_track(many, encoder)
    assert not found[716:900].any()
    assert_close(found[900], encoder(["good"]).sentences[0] / encoder(["good"]).sentences[0].norm())


def test_a_folder_of_tracks_is_a_feature_store(tmp_path):
    encoder = tiny_text_encoder(WORDS)
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:03,000\nroads\n")
    (tmp_path / "b.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:02.000\nbudget\n")
    (tmp_path / "notes.txt").touch()
    store = TextTrackFeatures(tmp_path, encoder, seconds_per_feature=0.5, durations={"b": 4})
    assert isinstance(store, FeatureStore)
    assert (store.video_ids, store.feature_dim, "a" in store) == (("a", "b"), 16, True)
    assert [len(store[one]) for one in store.video_ids] == [6, 8]
    assert store.description == "sentences of text tracks (D 16, 2/s)"
    of_cues = TextTrackFeatures({"x": CUES}, encoder)
    assert torch.equal(of_cues["x"], encode_text_track(CUES, encoder))
    with refuses(MissingFeatureError, "expected an id of a track, got c."):
        store["c"]
    (tmp_path / "a.vtt").touch()
    with refuses(ArgumentError, "expected one file per id, got ", "a.srt and ", "a.vtt."):
        TextTrackFeatures(tmp_path, encoder)
    with refuses(ArgumentError, "expected tracks of timed texts, got none in"):
        TextTrackFeatures({}, encoder)


def test_times_that_would_fill_the_memory_are_refused():
    encoder = tiny_text_encoder(WORDS)
    for cues, options in (
        ([Cue(0, 1e12, "roads")], {}),
        ([Cue(0, 1e300, "roads")], {}),
        (CUES, {"seconds_per_feature": 1e-9}),
        ([CUES[0]] * 4_000_000, {}),
    ):
        with refuses(SizeLimitError, "encode_text_track: expected "):
            encode_text_track(cues, encoder, **options)
    with refuses(ArgumentError, "expected seconds_per_feature in (0, inf), got 0."):
        encode_text_track(CUES, encoder, seconds_per_feature=0)
