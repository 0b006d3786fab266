from itertools import product

import pytest
from helpers.assertions import refuses
from helpers.datasets import didemo_record
from helpers.oracles import interval_iou

from tmapdiff.data import keep_consensus, load_didemo
from tmapdiff.errors import AnnotationError, ConfigError, FileError

RECORDS = [
    didemo_record(31, "1@N01_2_ab.mov", [[1, 1], [1, 1], [0, 2], [5, 5]], 6, "the man\nbends over"),
    didemo_record(7, "1@N01_3_cd.avi", [[4, 4], [0, 4], [3, 4], [2, 4], [3, 4], [0, 0], [0, 0]], 5),
]


def test_segments_become_seconds_with_both_ends_included(write):
    first, second = load_didemo(write("val_data.json", RECORDS).parent, "val")
    assert (first.qid, first.video_id, first.query) == (31, "1@N01_2_ab.mov", "the man bends over")
    assert first.duration == 30.0
    assert first.moments == ((5.0, 10.0), (5.0, 10.0), (0.0, 15.0), (25.0, 30.0))
    assert (second.query, second.duration, len(second.moments)) == ("a dog", 25.0, 7)
    assert second.moments[1] == (0.0, 25.0)


def test_consensus_agrees_best_with_the_others(write):
    everyone = load_didemo(write("val_data.json", RECORDS).parent, "val")
    found = keep_consensus(everyone)
    for item, whole in zip(found, everyone, strict=True):
        agreement = {
            moment: sum(interval_iou(moment, other) for other in whole.moments)
            for moment in whole.moments
        }
        (kept,) = item.moments
        assert agreement[kept] == max(agreement.values())
    assert found[0].moments == ((5.0, 10.0),)


def test_the_first_of_equals_is_the_consensus(write):
    record = {**RECORDS[0], "times": [[3, 3], [1, 1], [0, 0], [1, 1], [3, 3]]}
    (found,) = keep_consensus(load_didemo(write("val_data.json", [record]).parent, "val"))
    assert found.moments == ((15.0, 20.0),)


def changed(**fields):
    return [RECORDS[1], {**RECORDS[0], **fields}]


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ("{", "val_data.json: expected JSON, got "),
        ("[" * 100_000, "val_data.json: expected JSON, got "),
        ({"a": 1}, "val_data.json: expected a list of records, got {'a': 1}."),
        ([3], "record 1: expected an object with the field 'num_segments', got 3."),
        ([{"a": 1}], "record 1: expected the field 'num_segments', got the fields a."),
        (changed(num_segments=0), "record 2: expected num_segments to be a number > 0, got 0."),
        (changed(num_segments=10**400), "expected num_segments to be a number > 0, got 1000"),
        (changed(num_segments="6"), "record 2: expected num_segments to be a number > 0, got '6'."),
        (changed(times=[]), "record 2: expected times to be a list of pairs, got []."),
        (changed(times=[[1]]), "2: expected [start, end] in times to be 2 numbers, got [1]."),
        (changed(times=[[1, None]]), "[start, end] in times to be 2 numbers, got [1, None]."),
        (changed(times=[[-1, 2]]), "2: expected times as [first, last] of segments 0 to 5, got"),
        (changed(times=[[5, 6]]), "of segments 0 to 5, got [5, 6]."),
        (changed(times=[[2, 1]]), "of segments 0 to 5, got [2, 1]."),
        (changed(times=[[0.5, 1]]), "of segments 0 to 5, got [0.5, 1]."),
        (changed(description=" "), "record 2: expected a sentence, got ' '."),
        (changed(description=None), "record 2: expected a sentence, got None."),
        (changed(annotation_id=3.7), "record 2: expected annotation_id to be an integer or text"),
        (changed(annotation_id=7), "record 2: expected a unique qid, got 7 again, as in record 1"),
        (changed(video="../../x"), "expected a video id without '/'"),
        (changed(video=3), "record 2: expected a video id as text, got 3."),
    ],
)
def test_refuses_other_files(write, records, text):
    with refuses(AnnotationError, text):
        load_didemo(write("val_data.json", records).parent, "val")


def test_refuses_other_places(tmp_path):
    with refuses(FileError, "cannot read ", "test_data.json: No such file or directory."):
        load_didemo(tmp_path, "test")
    with refuses(ConfigError, "split to be one of train, val, test, got 'dev'."):
        load_didemo(tmp_path, "dev")


@pytest.mark.parametrize(
    ("split", "queries", "videos", "five_segments", "annotators"),
    [("val", 4180, 1094, 723, {4, 7}), ("test", 4021, 1037, 473, {4, 5, 7})],
)
def test_the_official_files(data_root, split, queries, videos, five_segments, annotators):
    found = load_didemo(data_root / "didemo", split)
    assert (len(found), len(found.video_ids)) == (queries, videos)
    assert sum(item.duration == 25.0 for item in found) == five_segments
    assert {len(item.moments) for item in found} == annotators
    legal = {(5.0 * s, 5.0 * e) for s, e in product(range(7), repeat=2) if s < e <= 6}
    assert {moment for item in found for moment in item.moments} <= legal
    assert found.report.dropped == {}
