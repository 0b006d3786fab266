"""Names of videos as people give them, from the file of a video to its moments."""

import os

import h5py
import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.datasets import charades_row, query_line, write_lines, write_store
from helpers.videos import write_video

from tmapdiff import extract_features, load_moment_jsonl, open_feature_store, read_submission
from tmapdiff.conversion import StoreFormat, convert_features
from tmapdiff.data import Prediction, load_charades_sta, write_submission
from tmapdiff.data._video_ids import file_name, video_id_of
from tmapdiff.errors import AnnotationError
from tmapdiff.inspection import inspect
from tmapdiff.video import FeatureStoreWriter

JAPANESE = "日本の料理番組で卵を焼く" * 6 + "x"
NAMES = ["Wait... what", JAPANESE[:68] + "y", "12:30", "con", "a|b?", "..x", "100%", "%3A"]
NAMES += ["é" * 120]
FORMATS = StoreFormat.__args__
REFUSED = ["a/b", "../../x", "/etc/x", "a\\b", "a\0", "", ".", "..", 7, None]


@pytest.mark.parametrize(
    ("video_id", "name"),
    [
        ("AO8RW", "AO8RW.npy"),
        ("Wait... what", "Wait... what.npy"),
        ("a%20b", "a%20b.npy"),
        ("100%", "100%.npy"),
        ("12:30", "%=12%3A30.npy"),
        ("12:30 100%", "%=12%3A30 100%25.npy"),
        ("con", "%=con.npy"),
        ("Aux.x", "%=Aux.x.npy"),
        ("console", "console.npy"),
        (".x", "%=.x.npy"),
        ("%=x", "%=%25=x.npy"),
        ("a\nb", "%=a%0Ab.npy"),
    ],
)
def test_names_of_files(video_id, name):
    assert file_name(video_id, ".npy") == name
    assert video_id_of(name, ".npy") == video_id


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("npy", ["%=x", "%=a%3a", "%=%FF", "%=a b", "%~x"]),
        ("npy", ["12:30", "a\udce9", "con"]),  # which Windows does not have
        ("hdf5", NAMES),
    ],
)
def test_names_that_other_programs_gave_are_ids(tmp_path, kind, names):
    if os.name == "nt" and "con" in names and kind == "npy":
        pytest.skip("Windows has no such names")
    store = open_feature_store(write_store(tmp_path, kind, dict.fromkeys(names, np.ones((2, 3)))))
    assert {one: store[one].shape for one in store.video_ids} == dict.fromkeys(names, (2, 3))


@pytest.mark.parametrize("video_id", REFUSED)
def test_what_could_leave_a_folder_is_refused_by_readers_and_writers(tmp_path, video_id):
    line = query_line(video=video_id)
    path = write_lines(tmp_path / "lines.jsonl", [line])
    with refuses(AnnotationError, f"{path} line 1: expected a video id "):
        load_moment_jsonl(path)
    write_lines(path, [{**line, "pred_relevant_windows": [[1, 2, 0.5]]}])
    with refuses(AnnotationError, f"{path} line 1: expected a video id "):
        read_submission(path)
    with refuses(AnnotationError, "write_submission: expected a video id "):
        write_submission([Prediction(0, "a dog", video_id, ((1, 2, 0.5),))], tmp_path / "new.jsonl")
    inside = tmp_path / "one" / "two"
    with FeatureStoreWriter(inside / "a.h5", {}) as writer:
        with refuses(AnnotationError, "FeatureStoreWriter.write: expected a video id "):
            writer.write(video_id, np.ones((2, 3)), {})
        assert len(writer) == 0
        writer.finish()
    assert sorted(os.listdir(tmp_path)) == ["lines.jsonl", "one"]
    assert not (inside / "a.h5").exists()


@pytest.mark.parametrize("via", FORMATS)
def test_any_name_of_a_video_is_converted_and_back(tmp_path, via):
    names = [*NAMES, "\ud800"]
    arrays = {one: np.full((2, 3), n, np.float32) for n, one in enumerate(names)}
    with FeatureStoreWriter(tmp_path / "a.h5", {"model": "vgg"}) as writer:
        for one, array in arrays.items():
            writer.write(one, array, {"duration": 2.0} if len(one) % 2 else {})
        writer.finish()
    place = tmp_path / ("b.h5" if via == "hdf5" else "b")
    for source, target in ((tmp_path / "a.h5", place), (place, tmp_path / "c.h5")):
        report = convert_features(source, target, format=via if target is place else "hdf5")
        assert set(report.converted) == set(arrays)
        assert set(convert_features(source, target, format=report.format).kept) == set(arrays)
        store = open_feature_store(target)
        assert set(store.video_ids) == set(arrays)
        for one, array in arrays.items():
            assert one in store
            np.testing.assert_array_equal(store[one], array)
            assert store.attributes_of(one) == ({"duration": 2.0} if len(one) % 2 else {})
        del store


def test_what_was_not_finished_keeps_its_names(tmp_path):
    names = [*NAMES, "\ud800"]
    with FeatureStoreWriter(tmp_path / "a.h5", {}) as writer:
        for one in names:
            writer.write(one, np.ones((2, 3)), {"name": len(one)})
    with FeatureStoreWriter(tmp_path / "a.h5", {}) as writer:
        assert {one: writer[one]["name"] for one in names} == {one: len(one) for one in names}
        writer.finish()
    assert set(open_feature_store(tmp_path / "a.h5").video_ids) == set(names)


@pytest.mark.parametrize("format", FORMATS)
def test_names_that_are_too_long_for_files_are_skipped(tmp_path, format):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x" * 1000] = file["short"] = np.ones((2, 3), np.float32)
    report = convert_features(tmp_path / "a.h5", tmp_path / "b", format=format)
    assert report.converted == ("short",)
    assert "expected a video id whose file name has at most 255 bytes" in report.skipped[0].reason


def test_any_name_of_a_file_goes_from_video_to_features_and_annotations(tmp_path):
    pytest.importorskip("av")
    from tmapdiff import FrameEncoder

    names = [one for one in NAMES if len(one.encode()) < 250]
    names = names[:3] + (["caf\udce9"] if os.name == "posix" and os.fsencode("\udce9") else [])
    (tmp_path / "videos").mkdir()
    try:
        for index, one in enumerate(names):
            write_video(tmp_path / "video.mp4", range(4 + index))
            (tmp_path / "video.mp4").replace(tmp_path / "videos" / f"{one}.mp4")
    except OSError:
        pytest.skip("this file system has no such names")
    assert inspect(tmp_path / "videos").findings == ()
    torch.manual_seed(0)
    encoder = FrameEncoder("test_resnet", pretrained=False)
    report = extract_features(tmp_path / "videos", encoder, tmp_path / "a.h5", fps=1)
    assert (set(report.extracted), report.skipped) == (set(names), ())
    again = extract_features(tmp_path / "videos", encoder, tmp_path / "a.h5", fps=1)
    assert set(again.kept) == set(names)
    lines = (query_line(n, one, [[0, 1]], duration=3.0 + n) for n, one in enumerate(names))
    path = write_lines(tmp_path / "queries.jsonl", lines)
    annotations = load_moment_jsonl(path)
    convert_features(tmp_path / "a.h5", tmp_path / "npy")
    for place in (tmp_path / "a.h5", tmp_path / "npy"):
        store = open_feature_store(place)
        assert annotations.restrict_to(store) == annotations
        assert [len(store[one]) for one in names] == [3 + n for n in range(len(names))]
        assert inspect(place, tmp_path / "videos").findings == ()
        assert inspect(place, path).findings == ()
    stays, held_out = annotations.split_videos(0.5)
    assert set(stays.video_ids) | set(held_out.video_ids) == set(names)


def test_names_that_no_id_can_be_are_told_by_inspect_as_by_extract(tmp_path):
    pytest.importorskip("av")
    if os.name == "nt":
        pytest.skip("Windows has no such names")
    write_video(tmp_path / "a\\b.mp4", range(3))
    (finding,) = inspect(tmp_path).findings
    assert finding.items == ("a\\b",)
    assert "expected a video id without '/'" in finding.text


def test_videos_of_lines_may_have_blanks_in_their_names(charades):
    root = charades(["Wait... what 1.0 2.5##a person sits."], [charades_row("Wait... what")])
    (item,) = load_charades_sta(root, "train")
    assert (item.video_id, item.moments) == ("Wait... what", ((1.0, 2.5),))
