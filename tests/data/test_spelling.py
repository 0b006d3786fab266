"""Ids that annotations and features spell otherwise: `s27-d50` and `s27-d50.avi`, `x` and `v_x`."""

import numpy as np
import pytest
from helpers import datasets
from helpers.assertions import refuses
from hypothesis import given
from hypothesis import strategies as st

from tmapdiff import load_moment_jsonl, open_feature_store
from tmapdiff.data import (
    Annotation,
    AnnotationSet,
    ConcatFeatureStore,
    MomentDataset,
    NormalizedFeatureStore,
    Vocabulary,
)
from tmapdiff.data._spelling import find_spelling
from tmapdiff.errors import ArgumentError, MissingFeatureError
from tmapdiff.inspection import inspect
from tmapdiff.recipes import LocalizationData

KINDS = ["hdf5", "npy"]


def write_store(folder, kind, ids):
    return datasets.write_store(folder / kind, kind, dict.fromkeys(ids, np.ones((4, 2), "f4")))


def annotated(*ids):
    return AnnotationSet(Annotation(n, one, "a dog", 4.0, ((1, 2),)) for n, one in enumerate(ids))


def write_lines(path, ids):
    fields = {"windows": [[1, 2]], "duration": 4.0}
    lines = (datasets.query_line(f"{path.stem}{one}", one, **fields) for one in ids)
    return datasets.write_lines(path, lines)


CASES = [
    (["s27-d50", "s1-d2"], ["s27-d50.avi", "s1-d2.avi"], "with '.avi'"),  # of TACoS
    (["a.MOV", "b.mov"], ["a", "b"], "without suffix"),
    (["a.mov", "b.avi"], ["a.mp4", "b.mp4"], "with '.mp4'"),
    (["x", "y"], ["v_x", "v_y"], "with 'v_'"),
    (["v_x", "v_y"], ["x", "y"], "without 'v_'"),
    (["x", "y"], ["v_x.mp4", "v_y.mp4"], "with 'v_' and with '.mp4'"),
    (["v_x.mp4", "v_y.mp4"], ["x", "y"], "without 'v_' and without suffix"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("asked", "there", "words"), CASES)
def test_other_spellings_are_found_and_told(tmp_path, kind, asked, there, words):
    store = open_feature_store(write_store(tmp_path, kind, there))
    for one in (store, NormalizedFeatureStore(store), ConcatFeatureStore([store, store])):
        found = annotated(*asked, "lost").restrict_to(one)
        assert found.video_ids == tuple(there)
        assert [item.qid for item in found] == [0, 1]
        assert found.report.missing_videos == ("lost",)
        assert str(found.report).count(f"video ids spelled {words}, as in the features") == 1
        assert found.restrict_to(one) == found
    vocabulary = Vocabulary(["a", "dog"])
    assert MomentDataset(found, store, vocabulary, num_clips=2)[0].features.shape == (2, 2)


def test_what_is_there_as_it_is_spelled_is_taken():
    found = annotated("x", "y", "z.avi").restrict_to({"x", "v_y", "z", "v_x"})
    assert found.video_ids == ("x",)
    assert found.report.spelling == ""
    assert found.report.missing_videos == ("y", "z.avi")


def test_two_videos_do_not_become_one():
    assert annotated("x.avi", "x.mp4").restrict_to({"x"}).video_ids == ()


@given(
    st.lists(st.sampled_from(["a", "b", "v_a", "a.avi", "v_b.mp4", "c.25"]), unique=True),
    st.sets(st.sampled_from(["a", "b", "v_a", "a.avi", "v_b.mp4", "b.mkv", "c", "", "v_", ".avi"])),
)
def test_no_two_ids_get_the_same_features(ids, store):
    words, names = find_spelling(ids, store)
    assert set(names) <= set(ids)
    assert set(names.values()) <= store
    assert len(set(names.values())) == len(names)
    if set(ids) & store:
        assert (words, dict(names)) == ("", {one: one for one in ids if one in store})


@pytest.mark.parametrize("kind", KINDS)
def test_where_none_fits_three_of_each_side_are_shown(tmp_path, kind):
    store = open_feature_store(write_store(tmp_path, kind, ["k1", "k2", "k3", "k4"]))
    ours = "no features of 4 videos (a, b, c, d)"
    theirs = "the features are of other videos, such as 'k1', 'k2', 'k3'"
    for one in (store, NormalizedFeatureStore(store), ConcatFeatureStore([store])):
        found = annotated(*"abcd").restrict_to(one)
        assert len(found) == 0
        with refuses(ArgumentError, "at least one annotation", ours, theirs):
            MomentDataset(found, store, Vocabulary(["a"]), num_clips=2)
        assert annotated().restrict_to(one).report.other_videos == ()
    text = "features of 'a', got none."
    with refuses(MissingFeatureError, text, "The store has 'k1', 'k2', 'k3', "):
        store["a"]


def test_the_command_line_finds_them_too(tmp_path):
    from tmapdiff.cli.data import DataOptions

    place = write_store(tmp_path, "npy", ["v_x", "v_y", "v_z"])
    train = write_lines(tmp_path / "train.jsonl", "xy")
    test = write_lines(tmp_path / "t.jsonl", "z")
    data = LocalizationData.load(train, test, features=[place]).with_features_only()
    assert (data.train.video_ids, data.test.video_ids) == (("v_x", "v_y"), ("v_z",))
    data = DataOptions(features=[str(place)]).load(train, test)
    assert data.test.video_ids == ("v_z",)
    assert str(data).count("video ids spelled with 'v_', as in the features") == 2  # a part each


def test_inspect_tells_of_another_spelling_and_compares_by_it(tmp_path):
    place = write_store(tmp_path, "npy", ["v_x", "v_y", "v_unasked"])
    lines = write_lines(tmp_path / "train.jsonl", "xyz")
    found = {one.kind: one for one in inspect(lines, place).findings if "dup" not in one.kind}
    text = "the features spell the ids of 2 videos with 'v_': v_x, v_y"
    assert found["other spelling"].text == text
    assert found["missing features"].items == ("z",)
    assert found["features without annotations"].items == ("v_unasked",)
    assert load_moment_jsonl(lines).video_ids == ("x", "y", "z")
