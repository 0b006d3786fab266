import json

import pytest
from helpers.assertions import refuses

from tmapdiff.data import load_activitynet_captions, load_tacos
from tmapdiff.errors import AnnotationError, ConfigError, FileError

CAPTIONS = {
    "v_a": {
        "duration": 50.5,
        "timestamps": [[0.5, 60.0], [3, 3], [10, 20.25], [50.5, 70]],
        "sentences": ["A man lifts.", "never", "  He  puts it down. ", "late"],
    },
    "v_b": {"duration": 10, "timestamps": [], "sentences": []},
    "v_c": {"duration": 10, "timestamps": [[0, 10]], "sentences": ["All of it."]},
}
COOKING = {
    "s1-d2.avi": {
        "num_frames": 300,
        "fps": 25.0,
        "timestamps": [[50, 100], [250, 350]],
        "sentences": ["She cuts.", "She eats."],
    }
}


def test_captions(write):
    found = load_activitynet_captions(write("val.json", CAPTIONS))
    rows = [(item.qid, item.video_id, item.query, item.duration, item.moments) for item in found]
    assert rows == [
        (0, "v_a", "A man lifts.", 50.5, ((0.5, 50.5),)),
        (1, "v_a", "He puts it down.", 50.5, ((10.0, 20.25),)),
        (2, "v_c", "All of it.", 10.0, ((0.0, 10.0),)),
    ]
    report = found.report
    assert (report.source, report.lines, report.kept, report.cut_ends) == ("val.json", 5, 3, 1)
    assert report.dropped == {"start not before end": (2,), "starts after the video's end": (4,)}


def test_cooking_videos_count_frames(write):
    found = load_tacos(write("val.json", COOKING))
    assert [(item.video_id, item.duration, item.moments) for item in found] == [
        ("s1-d2", 12.0, ((2.0, 4.0),)),
        ("s1-d2", 12.0, ((10.0, 12.0),)),
    ]
    assert found.report.cut_ends == 1


def changed(**fields):
    return {"v": {**CAPTIONS["v_c"], **fields}}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "val.json: expected JSON, got Expecting value"),
        ([], "val.json: expected an object with a field per video, got []."),
        ({"v": 3}, "video 'v': expected an object with the field 'duration', got 3."),
        (changed(duration=-1), "video 'v': expected duration to be a number > 0, got -1."),
        (changed(sentences="x"), "video 'v': expected a list of sentences, got 'x'."),
        (changed(sentences=["a", "b"]), "one timestamp per sentence, 2, got 1."),
        (changed(sentences=[""]), "video 'v': expected a sentence, got ''."),
        (changed(timestamps=5), "video 'v': expected timestamps to be a list of pairs, got 5."),
        (changed(timestamps=[[1, 2, 3]]), "in timestamps to be 2 numbers, got [1, 2, 3]."),
        ('{"v": {"duration": NaN}}', "duration to be a number > 0, got nan."),
        ({"../v": CAPTIONS["v_c"]}, "expected a video id without '/'"),
    ],
)
def test_refuses_other_files(write, content, text):
    with refuses(AnnotationError, text):
        load_activitynet_captions(write("val.json", content))


def test_refuses_videos_without_frames(write, tmp_path):
    with refuses(AnnotationError, "video 'v': expected the field 'fps', got the fields duration"):
        load_tacos(write("val.json", {"v": CAPTIONS["v_c"]}))
    with refuses(AnnotationError, "fps to be a number > 0, got 0."):
        load_tacos(write("val.json", {"v": {**COOKING["s1-d2.avi"], "fps": 0}}))
    with refuses(FileError, "cannot read ", "none.json: No such file or directory."):
        load_tacos(tmp_path / "none.json")


def test_the_official_files(data_root):
    captions = load_activitynet_captions(data_root / "activitynet" / "val.json")
    assert (len(captions), len(captions.video_ids)) == (17_505, 4_917)
    tacos = load_tacos(data_root / "tacos" / "val.json")
    assert (len(tacos), len(tacos.video_ids)) == (4_436, 27)
    assert not any(video.endswith(".avi") for video in tacos.video_ids)


@pytest.mark.parametrize("names", [("val_1.json", "val_2.json"), ("val.json", "test.json")])
def test_a_folder_and_the_part(tmp_path, names):
    for part, name in zip(("train", "val", "test"), ("train.json", *names), strict=True):
        (tmp_path / name).write_text(json.dumps({part: CAPTIONS["v_c"]}))
    for part in ("train", "val", "test"):
        assert load_activitynet_captions(tmp_path, part).video_ids == (part,)
    assert load_activitynet_captions(tmp_path / names[0]).video_ids == ("val",)
    with refuses(ConfigError, "expected split to be one of train, val, test, got 'dev'."):
        load_activitynet_captions(tmp_path, "dev")
    with refuses(ConfigError, "expected split to be one of train, val, test, got 'none'."):
        load_activitynet_captions(tmp_path)
    (tmp_path / "val_1.json").write_text("{}")
    (tmp_path / "val.json").write_text("{}")
    with refuses(FileError, f"expected one file of val in {tmp_path}, got val_1.json, val.json."):
        load_activitynet_captions(tmp_path, "val")
    with refuses(FileError, f"cannot read {tmp_path / 'no' / 'train.json'}: No such file"):
        load_activitynet_captions(tmp_path / "no", "train")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_folder_of_cooking_and_the_part(tmp_path, split):
    (tmp_path / f"{split}.json").write_text(json.dumps(COOKING))
    found = load_tacos(tmp_path, split)
    assert found == load_tacos(tmp_path / f"{split}.json")
    assert found.video_ids == ("s1-d2",)
    with refuses(ConfigError, "expected split to be one of train, val, test, got 'none'."):
        load_tacos(tmp_path)
