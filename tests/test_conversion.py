import json
import os
import pickle
import signal
import sys
import time
from typing import get_args

import h5py
import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.processes import start_program

from tmapdiff.conversion import StoreFormat, convert_features
from tmapdiff.data import (
    ActionTimelineFeatures,
    CharadesVideo,
    ConcatFeatureStore,
    NormalizedFeatureStore,
    open_feature_store,
)
from tmapdiff.errors import ArgumentError, ConfigError, FeatureError, FileError

FORMATS = get_args(StoreFormat)
# Each is read and written once.
PAIRS = list(zip(FORMATS, [*FORMATS[1:], FORMATS[0]], strict=True))


@pytest.fixture
def arrays():
    lengths = {"b": 4, "a b.c": 1, "z": 9}
    random = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    return {name: random[:length] + length for name, length in lengths.items()}


def place(folder, format):
    return folder / ("new.h5" if format == "hdf5" else f"new-{format}")


@pytest.fixture
def source(tmp_path, arrays):
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file.attrs.update({"seconds_per_feature": 0.5, "means": [0.5, 1.0]})
        file.attrs["model"] = np.bytes_(b"vgg")
        for name, array in arrays.items():
            file.create_dataset(name, data=array).attrs["duration"] = len(array) * 0.5 + 0.1
    return tmp_path / "source.h5"


def contents(path):
    store = open_feature_store(path)
    features = {name: store[name].numpy().tobytes() for name in store.video_ids}
    said = {name: store.attributes_of(name) for name in store.video_ids}
    return store.attributes, features, said


@pytest.mark.parametrize(("via", "to"), PAIRS)
def test_round_trips_keep_features_to_the_bit_and_attributes(source, tmp_path, arrays, via, to):
    middle, end = tmp_path / "1", tmp_path / "2"
    middle.mkdir()
    report = convert_features(source, place(middle, via), format=via)
    assert sorted(report.converted) == sorted(arrays)
    assert (report.kept, report.skipped, report.format) == ((), (), via)
    convert_features(place(middle, via), place(end, to), format=to)
    attributes, features, said = contents(place(end, to))
    assert features == {name: array.tobytes() for name, array in arrays.items()}
    assert attributes == {"seconds_per_feature": 0.5, "model": "vgg", "means": "[0.5, 1.0]"}
    assert said == {name: {"duration": len(one) * 0.5 + 0.1} for name, one in arrays.items()}
    assert open_feature_store(place(end, to)).seconds_per_feature == 0.5


@pytest.mark.parametrize("format", FORMATS)
def test_done_again_it_adds_what_is_new_and_notices_what_changed(source, tmp_path, format):
    target = place(tmp_path, format)
    convert_features(source, target, format=format)
    with h5py.File(source, "a") as file:
        file["new"] = np.ones((2, 6), np.float32)
    report = convert_features(source, target, format=format)
    assert (report.converted, len(report.kept)) == (("new",), 3)
    assert contents(target)[1] == contents(source)[1]
    with h5py.File(source, "a") as file:
        file["z"][3, 2] += 1
    found = "got different ones. Remove it, or"
    with refuses(FeatureError, "expected the features of 'z' in", found):
        convert_features(source, target, format=format)


def test_the_format_follows_from_the_name(source, tmp_path):
    assert convert_features(source, tmp_path / "a.hdf5").format == "hdf5"
    assert convert_features(source, tmp_path / "a").format == "npy"


def test_a_rate_that_is_given_is_written(tmp_path):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.ones((3, 1, 1, 2), np.float16))
    convert_features(tmp_path / "npy", tmp_path / "new.h5", seconds_per_feature=2.0)
    store = open_feature_store(tmp_path / "new.h5")
    assert store.seconds_per_feature == 2.0
    assert torch.equal(store["a"], torch.ones(3, 2))


@pytest.mark.parametrize("format", FORMATS)
def test_features_that_cannot_be_used_are_skipped_and_told(source, tmp_path, arrays, format):
    with h5py.File(source, "a") as file:
        file["nan"] = np.full((2, 6), np.nan, np.float32)
        file["narrow"] = np.ones((2, 5), np.float32)
        file["..\\bad"] = np.ones((2, 6), np.float32)
    report = convert_features(source, place(tmp_path, format), format=format)
    skipped = {note.video_id: note.reason for note in report.skipped}
    assert skipped.keys() == {"nan", "narrow", "..\\bad"}
    assert "NaN or infinity in 12 places" in skipped["nan"]
    assert "features of width 6" in skipped["narrow"]
    assert "expected a video id without '/'" in skipped["..\\bad"]
    assert sorted(open_feature_store(place(tmp_path, format)).video_ids) == sorted(arrays)
    assert str(report).splitlines()[0].endswith("3 videos converted, 0 kept, 3 skipped; verified")


@pytest.mark.parametrize("format", FORMATS)
def test_a_target_with_other_attributes_is_refused(source, tmp_path, format):
    target = place(tmp_path, format)
    convert_features(source, target, format=format)
    before = contents(target)
    with h5py.File(source, "a") as file:
        file.attrs["model"] = np.bytes_(b"clip")
    with refuses(FeatureError, "to have model = 'clip', got 'vgg'."):
        convert_features(source, target, format=format)
    # Features of unknown origin and rate would get those of the target, and the other way round.
    (tmp_path / "plain").mkdir()
    np.save(tmp_path / "plain" / "new.npy", np.ones((3, 6), np.float32))
    for rate, text in ((0.5, "model, like the new ones, got 'vgg'."), (None, "")):
        with refuses(FeatureError, "to have no ", text):
            convert_features(tmp_path / "plain", target, format=format, seconds_per_feature=rate)
    rated = place(tmp_path / "rated", format)
    convert_features(tmp_path / "plain", rated, format=format, seconds_per_feature=0.5)
    with refuses(FeatureError, "got 0.5. Pass seconds_per_feature, or write them elsewhere."):
        convert_features(tmp_path / "plain", rated, format=format)
    (tmp_path / "wide").mkdir()
    np.save(tmp_path / "wide" / "a.npy", np.ones((3, 7), np.float32))
    with refuses(FeatureError, f"expected features of width 6, like those in {target}, got 7."):
        convert_features(tmp_path / "wide", target, format=format)
    assert contents(target) == before
    with refuses(FeatureError, "to have ", ", got none."):
        convert_features(target, tmp_path / "plain")


def test_damage_of_what_was_written_is_noticed(source, tmp_path):
    # A truncated file, which is not written again as it exists.
    convert_features(source, tmp_path / "new", format="npy")
    (tmp_path / "new" / "z.npy").write_bytes((tmp_path / "new" / "z.npy").read_bytes()[:-8])
    with refuses(FeatureError, "expected the features of 'z'", "cannot read"):
        convert_features(source, tmp_path / "new", format="npy")


def test_what_cannot_be_done_is_refused(source, tmp_path):
    with refuses(ArgumentError, "expected source and target to differ, got"):
        convert_features(source, source)
    with refuses(ConfigError, "expected format to be one of hdf5, npy, npz, pt, got 'csv'."):
        convert_features(source, tmp_path / "x", format="csv")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.npz").write_bytes(b"")
    with refuses(FeatureError, "expected only .npy features in", "got .npz."):
        convert_features(source, tmp_path / "mixed", format="npy")
    (tmp_path / "file").write_text("")
    with refuses(FileError, "cannot write"):
        convert_features(source, tmp_path / "file" / "new", format="pt")


@pytest.mark.parametrize("content", ["[]", "{", '{"attributes": {}, "videos": {"a": 1}}'])
def test_attributes_that_are_none_are_told(source, tmp_path, content):
    convert_features(source, tmp_path / "new", format="npy")
    (tmp_path / "new" / "attributes.json").write_text(content)
    with refuses(FeatureError, "expected a JSON object with objects 'attributes' and 'videos'"):
        open_feature_store(tmp_path / "new")


@pytest.mark.process
@pytest.mark.parametrize("format", ["hdf5", "npz"])
def test_killed_it_goes_on_where_it_was(tmp_path, format):
    count, source, target = 120, tmp_path / "source.h5", place(tmp_path, format)
    with h5py.File(source, "w") as file:
        file.attrs["seconds_per_feature"] = 1.0
        for index in range(count):
            file[f"v{index:03}"] = np.full((50, 64), index, np.float32)
            file[f"v{index:03}"].attrs["duration"] = 50.0
    command = [sys.executable, "-m", "tmapdiff", "convert", source, target, "--format", format]
    places = target.with_name(f"{target.name}.parts") if format == "hdf5" else target
    process = start_program(list(map(str, command)))
    while process.poll() is None and len(list(places.glob("v*"))) < 20:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    report = convert_features(source, target, format=format)
    assert len(report.kept) >= 20
    assert len(report.kept) + len(report.converted) == count
    assert contents(target) == contents(source)
    left = [one for one in os.listdir(tmp_path) if not one.endswith(".lock")]
    assert sorted(left) == sorted([source.name, target.name])
    assert format == "hdf5" or not list(target.glob(".*"))


SIMULATED = ActionTimelineFeatures(
    {"A": CharadesVideo(10.0, ((0, 1.0, 4.0),)), "B": CharadesVideo(0.1, ())}, feature_dim=8, seed=3
)


@pytest.mark.parametrize(("via", "to"), [(one, "hdf5") for one in FORMATS] + [("hdf5", "npz")])
def test_simulated_features_stay_simulated_in_every_format(tmp_path, via, to):
    report = convert_features(SIMULATED, place(tmp_path, via), format=via)
    assert report.converted == ("A", "B")
    convert_features(place(tmp_path, via), tmp_path / "again", format=to)
    for path in (place(tmp_path, via), tmp_path / "again"):
        store = open_feature_store(path)
        assert all(torch.equal(store[video], SIMULATED[video]) for video in "AB")
        assert store.attributes_of("A") == {"duration": 10.0}
        assert store.seconds_per_feature == 0.25
        for one in (store, NormalizedFeatureStore(store), ConcatFeatureStore([store, store])):
            assert SIMULATED.description in one.description
        assert pickle.loads(pickle.dumps(store)).description == store.description


@pytest.mark.parametrize("format", FORMATS)
def test_simulated_features_of_two_seeds_are_not_mixed(tmp_path, format):
    target = place(tmp_path, format)
    convert_features(SIMULATED, target, format=format)
    assert convert_features(SIMULATED, target, format=format).kept == ("A", "B")
    other = ActionTimelineFeatures({"C": CharadesVideo(3.0, ())}, feature_dim=8, seed=4)
    with refuses(FeatureError, "to have description = 'SIMULATED", "seed 4)', got"):
        convert_features(other, target, format=format)
    with refuses(ArgumentError, "expected seconds_per_feature = 0.25, as simulated, got 1.0."):
        convert_features(other, tmp_path / "new", seconds_per_feature=1.0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("said", "told"), [("two\nlines", ": two lines"), (7, ""), ("", "")])
def test_a_description_is_one_line_and_only_a_text(source, tmp_path, format, said, told):
    with h5py.File(source, "a") as file:
        text = isinstance(said, str)
        file.attrs["description"] = np.array(said.encode(), f"S{len(said) or 1}") if text else said
    convert_features(source, place(tmp_path, format), format=format)
    description = open_feature_store(place(tmp_path, format)).description
    assert description.endswith(f"{place(tmp_path, format).name}{told}")


@pytest.mark.parametrize("format", FORMATS)
def test_attributes_that_stores_leave_out_are_mended(tmp_path, arrays, format):
    about = {"description": "SIMULATED", "frame_encoder": '{"model": "r\u00e9s"}'}
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs.update({**about, "seconds_per_feature": 0.5})
        for name, array in arrays.items():
            file.create_group(name)["x"] = array
            file[name]["x"].attrs.update({"source": f"{name}.mp4", "duration": 2.0})
    with pytest.warns(UserWarning, match="'frame_encoder', 'source' of variable length"):
        old = open_feature_store(tmp_path / "old.h5")
    assert old.description == "HDF5 features old.h5 (its description was left out)"
    for _ in range(2):  # without a warning, also when everything exists
        report = convert_features(tmp_path / "old.h5", place(tmp_path, format), format=format)
    assert (len(report.kept), report.skipped) == (3, ())
    attributes, features, said = contents(place(tmp_path, format))
    assert attributes == {**about, "seconds_per_feature": 0.5}
    assert features == {name: array.tobytes() for name, array in arrays.items()}
    assert said == {name: {"source": f"{name}.mp4", "duration": 2.0} for name in arrays}
    assert open_feature_store(place(tmp_path, format)).description.endswith(": SIMULATED")


def test_folders_say_what_they_hold_as_json(source, tmp_path):
    convert_features(source, tmp_path / "new", format="npz")
    said = json.loads((tmp_path / "new" / "attributes.json").read_text())
    assert said["attributes"]["seconds_per_feature"] == 0.5
    assert said["videos"]["z"] == {"duration": 4.6}
    with refuses(FeatureError, "expected seconds_per_feature = 0.5, as declared by the store, got"):
        open_feature_store(tmp_path / "new", 2)
