import pickle
from collections.abc import Sequence
from dataclasses import FrozenInstanceError

import pytest
from helpers.assertions import refuses
from hypothesis import given
from hypothesis import strategies as st

from tmapdiff.data import Annotation, AnnotationReport, AnnotationSet
from tmapdiff.errors import AnnotationError, ArgumentError


def annotation(qid=0, video_id="A", query="a person sits.", duration=10.0, moments=((1.0, 2.0),)):
    return Annotation(qid, video_id, query, duration, moments)


def annotations_of(videos):
    return AnnotationSet(annotation(qid, video) for qid, video in enumerate(videos))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"video_id": "../A"}, "annotation 0: expected a video id without '/'"),
        ({"video_id": "a\0"}, r"got 'a\x00'"),
        ({"video_id": "a/" + "x" * 1000}, "xxx...'."),
        ({"video_id": 7}, "expected a video id as text, got 7"),
        ({"query": " "}, "expected a sentence as query, got ' '"),
        ({"query": None}, "expected a sentence as query, got None"),
        ({"duration": 0.0}, "expected a duration > 0 seconds, got 0.0"),
        ({"duration": float("inf")}, "expected a duration > 0 seconds, got inf"),
        ({"duration": float("nan")}, "expected a duration > 0 seconds, got nan"),
        ({"duration": 10**400}, "expected a duration > 0 seconds, got 10"),
        ({"moments": ((1.0, 10**400),)}, "expected (start, end) to be 2 numbers, got"),
        ({"moments": ((2.0, 2.0),)}, "got (2, 2)"),
        ({"moments": ((-1.0, 2.0),)}, "got (-1, 2)"),
        ({"moments": ((1.0, 2.0), (1.0, 11.0))}, "got (1, 11)"),
        ({"moments": ((1.0, float("nan")),)}, "got (1.0, nan)"),
    ],
)
def test_a_wrong_annotation_is_refused(change, text):
    with refuses(AnnotationError, text):
        annotation(**change)


def test_set_is_an_immutable_sequence():
    items = annotations_of("ABAC")
    assert isinstance(items, Sequence)
    assert items[-1].video_id == "C"
    assert [item.qid for item in items] == [0, 1, 2, 3]
    assert isinstance(items[1:3], AnnotationSet)
    assert [item.qid for item in items[1:3]] == [1, 2]
    assert items.video_ids == ("A", "B", "C")
    assert repr(items) == "AnnotationSet(4 queries, 3 videos)"
    assert pickle.loads(pickle.dumps(items)) == items
    with pytest.raises(FrozenInstanceError):
        items.report = None
    with pytest.raises(FrozenInstanceError):
        items[0].query = "other"
    with pytest.raises(IndexError):
        items[4]

    with refuses(AnnotationError, "expected unique qids, got 0 twice"):
        AnnotationSet([annotation(), annotation()])


def test_limit():
    items = annotations_of("ABC")
    assert [items.limit(n) for n in (0, 2, 9)] == [items[:0], items[:2], items]
    with refuses(ArgumentError, "expected n to be an integer >= 0, got -1"):
        items.limit(-1)


def test_restrict_to_leaves_out_and_tells():
    items = annotations_of("ABACBD")
    kept = items.restrict_to({"A", "D"})
    assert [item.video_id for item in kept] == ["A", "A", "D"]
    assert kept.report.without_features == 3
    assert kept.report.missing_videos == ("B", "C")
    assert "3 queries left out: no features of 2 videos (B, C)" in str(kept.report)
    assert items.report.without_features == 0
    again = kept.restrict_to({"A"})
    assert again.report.without_features == 4
    assert again.report.missing_videos == ("B", "C", "D")
    assert items.restrict_to("ABCD") == items


@given(
    st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=2).filter(lambda v: len(set(v)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_split_shares_no_video_and_loses_none(videos, fraction, seed):
    items = annotations_of(videos)
    stays, held_out = items.split_videos(fraction, seed)
    assert not set(stays.video_ids) & set(held_out.video_ids)
    assert sorted([*stays, *held_out], key=lambda item: item.qid) == list(items)
    assert [item.qid for item in stays] == sorted(item.qid for item in stays)
    wanted = min(max(round(fraction * len(items.video_ids)), 1), len(items.video_ids) - 1)
    assert len(held_out.video_ids) == wanted
    # The order of the annotations does not matter.
    backwards = AnnotationSet(reversed(items)).split_videos(fraction, seed)[1]
    assert set(backwards.video_ids) == set(held_out.video_ids)
    many = annotations_of(f"V{number}" for number in range(50))
    assert many.split_videos(0.2, seed)[1].video_ids != many.split_videos(0.2, 9)[1].video_ids


@pytest.mark.parametrize("suffix", ["", ".mp4", ".AVI"])
def test_pieces_of_a_video_are_held_out_together(suffix):
    times = ("0.0_150.0", "60.0_210.0")
    items = annotations_of(f"{video}_{piece}{suffix}" for video in "ABCD" for piece in times)
    for seed in range(5):
        stays, held_out = (part.video_ids for part in items.split_videos(0.5, seed))
        assert len(stays) == len(held_out) == 4
        assert not {name[0] for name in stays} & {name[0] for name in held_out}
    with refuses(ArgumentError, "got 0.5 and 1 videos. Ids that end with two times"):
        items.limit(2).split_videos(0.5)


@pytest.mark.parametrize(
    ("fraction", "seed", "text"),
    [
        *((fraction, 0, "fraction in (0, 1]") for fraction in (0, -1, 1.5, float("nan"))),
        (1, 0, "fraction < 1 and at least two videos"),
        (0.5, -1, "seed to be an integer >= 0"),
    ],
)
def test_split_errors(fraction, seed, text):
    with refuses(ArgumentError, f"AnnotationSet.split_videos: expected {text}"):
        annotations_of("AB").split_videos(fraction, seed)


def test_report_reads_as_one_line():
    dropped = {"start not before end": tuple(range(1, 8)), "late": (9,)}
    report = AnnotationReport("file.txt", 12408, 12401, 1805, dropped)
    assert {AnnotationSet([], report), AnnotationSet([], report)} == {AnnotationSet([], report)}
    assert str(report) == (
        "file.txt: 12,408 lines, 12,401 kept; 1,805 ends clipped to the video's end; "
        "7 moments dropped: start not before end (lines 1, 2, 3, 4, 5, ...); "
        "1 moments dropped: late (lines 9)"
    )
    assert str(annotations_of("AB").report) == "annotations in memory: 2 lines, 2 kept"
