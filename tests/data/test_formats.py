import json
from typing import get_args

import pytest
from helpers.assertions import refuses
from helpers.datasets import query_line

from tmapdiff.data import (
    AnnotationFormat,
    find_annotations,
    load_activitynet_captions,
    load_annotations,
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
def folders(tmp_path, charades):
    places = {name: tmp_path / name for name in get_args(AnnotationFormat)}
    for place in places.values():
        place.mkdir()
    for split in ("train", "test"):
        charades(["AAAAA 1.0 5.0##a person sits."], split=split)
        for file in (f"charades_sta_{split}.txt", f"Charades_v1_{split}.csv"):
            (tmp_path / file).rename(places["charades-sta"] / file)
        text = (places["charades-sta"] / f"charades_sta_{split}.txt").read_text()
        (places["vslnet"] / f"charades_sta_{split}.txt").write_text(text)
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
    found = find_annotations(place, "vslnet")
    names = [(one.path.stem, one.split) for one in found]
    assert names == [("train", "train"), ("val_2", "val"), ("val_1", "test")]
    assert found[-1].load() == load_vslnet(place, "activitynet", "test")
    assert [one.load() for one in find_annotations(folders["tacos"], "vslnet")] == [
        load_vslnet(folders["tacos"], "tacos", split) for split in ("train", "test")
    ]


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
