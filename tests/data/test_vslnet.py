import json

import pytest
from helpers.assertions import refuses

from tmapdiff.data import (
    load_activitynet_captions,
    load_charades_actions,
    load_charades_sta,
    load_tacos,
    load_vslnet,
)
from tmapdiff.errors import AnnotationError, ConfigError, FileError

from .test_activitynet import CAPTIONS, COOKING

LENGTHS = {"AAAAA": {"subset": "training", "duration": 30.0, "actions": [[1, 0.0, 5.0]]}}


def test_charades(write):
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
    ("split", "name"), [("train", "train.json"), ("val", "val_2.json"), ("test", "val_1.json")]
)
def test_splits_of_activitynet_are_vslnet_s(tmp_path, split, name):
    (tmp_path / name).write_text(json.dumps(CAPTIONS))
    found = load_vslnet(tmp_path, "activitynet", split)
    assert list(found) == list(load_activitynet_captions(tmp_path / name))
    assert found[0].query == "A man lifts."


def test_tacos_loses_its_suffix(tmp_path):
    (tmp_path / "val.json").write_text(json.dumps(COOKING))
    found = load_vslnet(tmp_path, "tacos", "val")
    assert list(found) == list(load_tacos(tmp_path / "val.json"))
    assert (found[0].video_id, found[0].moments) == ("s1-d2", ((2.0, 4.0),))


@pytest.mark.parametrize(
    ("line", "lengths", "text"),
    [
        ("BBBBB 1 2##x", LENGTHS, "txt line 2: expected a video of charades.json, got 'BBBBB'."),
        ("AAAAA##x", LENGTHS, "sta_train.txt line 2: expected 'VIDEO START END##sentence'"),
        ("", {"AAAAA": {"duration": None}}, "json, video 'AAAAA': expected duration to be a num"),
        ("", 3, "charades.json: expected an object with a field per video, got 3."),
    ],
)
def test_malformed_files_are_named(write, line, lengths, text):
    write("charades_sta_train.txt", "AAAAA 1 2##x", line)
    with refuses(AnnotationError, text):
        load_vslnet(write("charades.json", lengths).parent, "charades", "train")


def test_refuses(tmp_path):
    with refuses(ConfigError, "load_vslnet: expected task to be one of charades, activitynet, "):
        load_vslnet(tmp_path, "didemo", "train")
    with refuses(ConfigError, "load_vslnet: expected split to be one of train, test, got 'val'."):
        load_vslnet(tmp_path, "charades", "val")
    with refuses(FileError, "cannot read ", "charades.json: No such file or directory."):
        load_vslnet(tmp_path, "charades", "test")


def test_the_official_files(charades_root, data_root, tmp_path):
    # VSLNet's charades.json has the durations of the csv.
    videos = load_charades_actions(charades_root, "test")
    lengths = {video_id: {"duration": video.duration} for video_id, video in videos.items()}
    (tmp_path / "charades.json").write_text(json.dumps(lengths))
    name = "charades_sta_test.txt"
    (tmp_path / name).write_bytes((charades_root / name).read_bytes())
    expected = load_charades_sta(charades_root, "test")
    assert load_vslnet(tmp_path, "charades", "test") == expected
    assert len(load_vslnet(data_root / "tacos", "tacos", "val")) == 4_436
