import json

import h5py
import numpy as np
from helpers.assertions import refuses
from helpers.datasets import query_line, write_charades, write_lines

from tmapdiff.data import ActionTimelineFeatures, ConcatFeatureStore, Vocabulary
from tmapdiff.errors import ArgumentError, FileError
from tmapdiff.maps import MapGrid
from tmapdiff.recipes import LocalizationData, open_features
from tmapdiff.recipes.training import DIDEMO_GRID

DIDEMO = [
    {"annotation_id": n, "video": f"{n}.mov", "description": "a dog", "num_segments": 6,
     "times": [[0, 0], [1, 2], [1, 2]]}
    for n in range(3)
]  # fmt: skip


def jsonl(path, *videos):
    return write_lines(path, (query_line(n, video) for n, video in enumerate(videos)))


def store(path, *videos, length=9, width=4, **attributes):
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for video in videos:
            file[video] = np.ones((length, width), np.float32)
    return path


def test_made_up_data_are_what_they_say():
    data = LocalizationData.make_up()
    assert (data.name, data.protocol, data.is_synthetic) == ("synthetic", "rank", True)
    assert not set(data.train.video_ids) & set(data.test.video_ids)
    assert all(video in data.store for video in (*data.train.video_ids, *data.test.video_ids))
    assert "SIMULATED" in str(data)
    assert LocalizationData.make_up("didemo").protocol == "didemo"


def test_two_files_or_the_parts_of_a_folder(tmp_path):
    features = [store(tmp_path / "f.h5", "a", "b")]
    train = jsonl(tmp_path / "x_train.jsonl", "a")
    test = jsonl(tmp_path / "x_val.jsonl", "b")
    named = LocalizationData.load(train, test, features=features)
    assert (named.train.video_ids, named.test.video_ids) == (("a",), ("b",))
    assert named.name == "moment-jsonl"
    found = LocalizationData.load(tmp_path, test_split="val", features=features)
    assert (found.train, found.test) == (named.train, named.test)
    with refuses(FileError, "one annotation file for test at"):
        LocalizationData.load(tmp_path, features=features)
    alone = LocalizationData.load(None, test, features=features)
    assert (len(alone.train), alone.test) == (0, named.test)
    assert str(alone).splitlines()[0].startswith("test: ")


def test_videos_without_features_are_left_out_and_told(tmp_path):
    features = [store(tmp_path / "f.h5", "a", "b")]
    path = jsonl(tmp_path / "q.jsonl", "a", "c", "b")
    data = LocalizationData.load(path, path, features=features).with_features_only()
    assert data.train.video_ids == data.test.video_ids == ("a", "b")
    assert "no features of 1 videos (c)" in str(data)
    assert data.limit(1).test.video_ids == ("a",)


def test_what_is_held_out_is_the_same_for_every_training(tmp_path):
    features = [store(tmp_path / "f.h5", "a")]
    path = jsonl(tmp_path / "q.jsonl", *"abcdefgh")
    data = LocalizationData.load(path, path, features=features)
    held = data.hold_out(0.25)
    assert (held.train, held.test) == data.train.split_videos(0.25, 0)


def test_didemo_is_judged_by_its_own_protocol(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}_data.json").write_text(json.dumps(DIDEMO))
    features = [store(tmp_path / "f.h5", "0.mov", "1.mov", "2.mov", length=6)]
    data = LocalizationData.load(tmp_path, features=features)
    assert (data.protocol, data.store.seconds_per_feature) == ("didemo", 5.0)
    vocabulary, grid = Vocabulary(["a", "dog"]), MapGrid(**DIDEMO_GRID)
    # One moment for training, those of all annotators for evaluation.
    assert data.make_train_set(grid, vocabulary, 5.0)[0].annotation.moments == ((5.0, 15.0),)
    test_set = data.make_test_set(grid, vocabulary, 5.0)
    assert len(test_set[0].annotation.moments) == 3
    # A store that states its rate keeps it.
    finer = [store(tmp_path / "g.h5", "0.mov", length=60, seconds_per_feature=0.5)]
    assert LocalizationData.load(tmp_path, features=finer).store.seconds_per_feature == 0.5
    with refuses(ArgumentError, "protocol 'didemo' for DiDeMo, and only for DiDeMo, got 'rank' f"):
        LocalizationData.load(tmp_path, features=features, protocol="rank")


def test_the_protocol_is_that_which_is_named(tmp_path):
    features, path = [store(tmp_path / "f.h5", "a")], jsonl(tmp_path / "q.jsonl", "a")
    assert LocalizationData.load(path, features=features).protocol == "rank"
    data = LocalizationData.load(path, features=features, protocol="qvhighlights")
    assert data.protocol == "qvhighlights"
    with refuses(ArgumentError, "got 'didemo' for moment-jsonl."):
        LocalizationData.load(path, features=features, protocol="didemo")


def test_training_and_test_must_be_of_one_format(tmp_path):
    (tmp_path / "test_data.json").write_text(json.dumps(DIDEMO))
    train = jsonl(tmp_path / "train.jsonl", "a")
    with refuses(ArgumentError, "in one format, got moment-jsonl and didemo."):
        LocalizationData.load(train, tmp_path / "test_data.json", features=["f.h5"])


def test_whole_videos_are_evaluated_when_clips_have_a_length(tmp_path):
    path = jsonl(tmp_path / "q.jsonl", "a")
    features = [store(tmp_path / "f.h5", "a", seconds_per_feature=1.0)]
    data = LocalizationData.load(path, path, features=features)
    grid, words = MapGrid(num_clips=4, num_anchors=2, num_scales=2), Vocabulary(["a", "dog"])
    for clip_seconds, clips in ((None, 4), (1.0, 10)):
        test_set = data.make_test_set(grid, words, clip_seconds)
        assert len(test_set[0].features) == clips, "a multiple of the coarsest clip"
        assert not test_set[0].is_window
    assert data.make_train_set(grid, words, 1.0)[0].is_window


def test_features_of_several_stores_are_put_side_by_side(tmp_path):
    one, other = store(tmp_path / "f.h5", "a"), store(tmp_path / "g.h5", "a", width=3)
    both = open_features([one, other], 1.0)
    assert isinstance(both, ConcatFeatureStore)
    assert both["a"].shape == (9, 7)
    assert open_features([one]).feature_dim == 4


def test_timeline_stands_alone_and_needs_charades(tmp_path):
    with refuses(ArgumentError, "expected only timeline, and the folder of Charades, got none."):
        open_features(["timeline"])
    with refuses(ArgumentError, "got other stores."):
        open_features(["timeline", "f.h5"], charades_root=tmp_path)
    with refuses(ArgumentError, "expected features, got none. Pass a store, or timeline."):
        open_features([])


def test_charades_with_simulated_features(tmp_path):
    data = LocalizationData.load(write_charades(tmp_path / "charades"), features=["timeline"])
    assert data.name == "charades"
    assert isinstance(data.store, ActionTimelineFeatures)
    assert all(video in data.store for video in ("AAAAA", "BBBBB"))
