import json
import os
from typing import get_args

import pytest
from helpers.assertions import refuses
from helpers.datasets import charades_row, query_line, write_charades_split

from tmapdiff.data import (
    AnnotationFormat,
    find_annotations,
    load_activitynet_captions,
    load_annotations,
    load_charades_actions,
    load_charades_sta,
    load_didemo,
    load_moment_jsonl,
    load_tacos,
    load_vslnet,
    open_feature_store,
)
from tmapdiff.errors import AnnotationError, ConfigError, FileError

from .test_activitynet import CAPTIONS, COOKING
from .test_didemo import RECORDS


@pytest.fixture
def folders(tmp_path):
    places = {name: tmp_path / name for name in get_args(AnnotationFormat)}
    for place in places.values():
        place.mkdir()
    for split in ("train", "test"):
        line, row = "AAAAA 1.0 5.0##a person sits.", charades_row("AAAAA")
        write_charades_split(places["charades-sta"], [line], [row], split)
        (places["vslnet"] / f"charades_sta_{split}.txt").write_text(line)
        (places["didemo"] / f"{split}_data.json").write_text(json.dumps(RECORDS))
        (places["tacos"] / f"{split}.json").write_text(json.dumps(COOKING))
        (places["moment-jsonl"] / f"my_{split}_release.jsonl").write_text(json.dumps(query_line()))
    (places["vslnet"] / "charades.json").write_text(json.dumps({"AAAAA": {"duration": 30.0}}))
    for name in ("train", "val_1", "val_2"):
        (places["activitynet"] / f"{name}.json").write_text(json.dumps(CAPTIONS))
    return places


@pytest.mark.parametrize("format", get_args(AnnotationFormat))
def test_each_format_is_found_and_loaded_as_by_its_own_loader(folders, format):
    place = folders[format]
    loaders = {
        "charades-sta": lambda: load_charades_sta(place, "test"),
        "didemo": lambda: load_didemo(place, "test"),
        "activitynet": lambda: load_activitynet_captions(place / "val_2.json"),
        "tacos": lambda: load_tacos(place / "test.json"),
        "vslnet": lambda: load_vslnet(place, "charades", "test"),
        "moment-jsonl": lambda: load_moment_jsonl(place / "my_test_release.jsonl"),
    }
    found = find_annotations(place)
    assert {one.format for one in found} == {format}
    assert [one.split for one in found][:: len(found) - 1] == ["train", "test"]
    wanted = loaders[format]()
    for loaded in (
        load_annotations(place, "test"),
        load_annotations(place, "test", format),
        load_annotations(found[-1].path),
    ):
        assert loaded == wanted


def test_splits_of_activitynet_are_2d_tan_s_but_of_vslnet_s_files_its_own(folders):
    place = folders["activitynet"]
    names = [(one.path.stem, one.split) for one in find_annotations(place)]
    assert names == [("train", "train"), ("val_1", "val"), ("val_2", "test")]
    names = [(one.path.stem, one.split) for one in find_annotations(place, "vslnet")]
    assert names == [("train", "train"), ("val_2", "val"), ("val_1", "test")]
    for task, load in (("activitynet", load_activitynet_captions), ("tacos", load_tacos)):
        for one in find_annotations(folders[task], "vslnet"):
            assert one.load() == load_vslnet(folders[task], task, one.split) == load(one.path)


def test_suffixes_may_be_in_capitals(folders):
    for format, name in (("activitynet", "val_2.json"), ("moment-jsonl", "my_test_release.jsonl")):
        wanted = tuple(load_annotations(folders[format], "test"))
        (path := folders[format] / name).rename(path.with_name(name.upper()))
        assert tuple(load_annotations(folders[format], "test")) == wanted


def test_submissions_and_other_json_are_no_annotations(folders):
    place = folders["moment-jsonl"]
    answer = '{"qid": 1, "pred_relevant_windows": [[0, 1, 1]]}'
    (place / "predictions_test.jsonl").write_text(answer)
    (place / "metrics.json").write_text('{"mIoU": 12.0}')
    (place / "broken.json").write_text("{")
    assert len(find_annotations(place)) == 2


def test_what_cannot_be_told_is_refused(folders, tmp_path):
    with refuses(FileError, f"expected annotations at {tmp_path / 'none'}, got no such folder."):
        find_annotations(tmp_path / "none")
    with refuses(FileError, "got no such file."):
        find_annotations(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with refuses(FileError, "expected annotation files in", "got 0 other files"):
        find_annotations(tmp_path / "empty")
    with refuses(FileError, "expected annotation files of didemo in"):
        find_annotations(folders["tacos"], "didemo")
    (tmp_path / "words.txt").write_text("a b c")
    with refuses(AnnotationError, "got the file", "Formats: charades-sta, didemo"):
        find_annotations(tmp_path / "words.txt")
    os.mkfifo(tmp_path / "pipe")
    with refuses(AnnotationError, f"got the file {tmp_path / 'pipe'}. Formats:"):
        find_annotations(tmp_path / "pipe")
    with refuses(ConfigError, "expected format to be one of charades-sta,"):
        find_annotations(tmp_path, "mad")
    with refuses(ConfigError, "expected split to be one of train, val, test, got 'dev'"):
        load_annotations(folders["tacos"], "dev")
    with refuses(FileError, "one annotation file for val at", "train.json (train), test.json"):
        load_annotations(folders["tacos"], "val")
    with refuses(FileError, "one annotation file at", "Name the split."):
        load_annotations(folders["tacos"])


@pytest.mark.parametrize(
    ("folder", "format", "name"),
    [
        ("charades", "charades-sta", "charades_sta_{}.txt"),
        ("didemo", "didemo", "{}_data.json"),
        ("activitynet", "activitynet", "{}.json"),
        ("tacos", "tacos", "{}.json"),
        ("qvhighlights", "moment-jsonl", "highlight_{}_release.jsonl"),
    ],
)
def test_official_files_are_recognised(data_root, folder, format, name):
    found = {one.path.name: one for one in find_annotations(data_root / folder)}
    # Which of them are there, and what else is, is up to whoever keeps the folder.
    splits = {"train": "train", "val": "val", "test": "test", "val_1": "val", "val_2": "test"}
    there = {name.format(one): split for one, split in splits.items() if name.format(one) in found}
    assert there
    for one, split in there.items():
        assert (found[one].format, found[one].split) == (format, split)


@pytest.mark.parametrize("load", [load_moment_jsonl, open_feature_store])
def test_addresses_are_not_opened(load):
    with refuses(FileError, "got https://a.org/b. URLs are not supported"):
        load("https://a.org/b")


# VSLNet's files

LENGTHS = {"AAAAA": {"subset": "training", "duration": 30.0, "actions": [[1, 0.0, 5.0]]}}


def test_vslnet_s_files_of_charades(write):
    lines = "AAAAA 1.0 2.5##a person sits.", "AAAAA 28.0 31.0##a person stands up."
    write("charades_sta_train.txt", *lines)
    root = write("charades.json", LENGTHS).parent
    found = load_vslnet(root, "charades", "train")
    rows = [(item.qid, item.video_id, item.query, item.duration, item.moments) for item in found]
    assert rows == [
        (0, "AAAAA", "a person sits.", 30.0, ((1.0, 2.5),)),
        (1, "AAAAA", "a person stands up.", 30.0, ((28.0, 30.0),)),
    ]
    assert (found.report.source, found.report.cut_ends) == ("charades_sta_train.txt", 1)


@pytest.mark.parametrize(
    ("line", "lengths", "text"),
    [
        ("BBBBB 1 2##x", LENGTHS, "txt line 2: expected a video of charades.json, got 'BBBBB'."),
        ("AAAAA##x", LENGTHS, "sta_train.txt line 2: expected 'VIDEO START END##sentence'"),
        ("", {"AAAAA": {"duration": None}}, "json, video 'AAAAA': expected duration to be a num"),
        ("", 3, "charades.json: expected an object with a field per video, got 3."),
    ],
)
def test_malformed_files_of_vslnet_are_named(write, line, lengths, text):
    write("charades_sta_train.txt", "AAAAA 1 2##x", line)
    with refuses(AnnotationError, text):
        load_vslnet(write("charades.json", lengths).parent, "charades", "train")


def test_what_vslnet_has_not_is_refused(tmp_path):
    with refuses(ConfigError, "load_vslnet: expected task to be one of charades, activitynet, "):
        load_vslnet(tmp_path, "didemo", "train")
    with refuses(ConfigError, "load_vslnet: expected split to be one of train, test, got 'val'."):
        load_vslnet(tmp_path, "charades", "val")
    with refuses(FileError, "cannot read ", "charades.json: No such file or directory."):
        load_vslnet(tmp_path, "charades", "test")


def test_the_official_files_in_vslnet_s_form(charades_root, data_root, tmp_path):
    # VSLNet's charades.json has the durations of the csv.
    videos = load_charades_actions(charades_root, "test")
    lengths = {video_id: {"duration": video.duration} for video_id, video in videos.items()}
    (tmp_path / "charades.json").write_text(json.dumps(lengths))
    name = "charades_sta_test.txt"
    (tmp_path / name).write_bytes((charades_root / name).read_bytes())
    expected = load_charades_sta(charades_root, "test")
    assert load_vslnet(tmp_path, "charades", "test") == expected
    assert len(load_vslnet(data_root / "tacos", "tacos", "val")) == 4_436
