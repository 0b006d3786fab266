import json

import h5py
import numpy as np
import torch

from tmapdiff.data import ActionTimelineFeatures, open_feature_store

from .conftest import QUICK


def test_converts_and_says_so(passes, corpus, tmp_path):
    found = passes("convert", corpus.features, tmp_path / "npz", "--format", "npz", "--json")
    assert found.document["format"] == "npz"
    assert sorted(found.document["converted"]) == ["one", "three", "two"]
    before, after = open_feature_store(corpus.features), open_feature_store(tmp_path / "npz")
    assert after.attributes == before.attributes
    assert all(torch.equal(before[video], after[video]) for video in before.video_ids)
    said = passes("convert", tmp_path / "npz", tmp_path / "back.h5").out
    assert said.endswith("back.h5 (hdf5): 3 videos converted, 0 kept, 0 skipped; verified\n")


def test_features_that_cannot_be_used_are_code_1(run, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = np.ones((2, 3), np.float32)
        file["nan"] = np.full((2, 3), np.nan)
    found = run("convert", tmp_path / "a.h5", tmp_path / "b")
    assert found.code == 1
    assert "skipped nan: HDF5 features a.h5, video 'nan': expected finite" in found.out


def test_timelines_are_written_with_a_seed_and_stay_simulated(
    run, passes, charades, queries, tmp_path
):
    files = {}
    for name, seed in (("zero.h5", []), ("one.h5", ["--seed", 1])):
        files[name] = tmp_path / name
        passes("convert", "timeline", files[name], "--root", charades, *seed)
    found = ActionTimelineFeatures.from_charades(charades, seed=1)
    assert torch.equal(open_feature_store(files["one.h5"])["BBBBB"], found["BBBBB"])
    train, test = queries("train.jsonl", "AAAAA"), queries("test.jsonl", "BBBBB")
    said = {}
    for name, place in (*files.items(), ("timeline", "timeline")):
        data = ["--root", charades] if name == "timeline" else []
        data += ["--train", train, "--test", test, "--features", place, "--model", "prior"]
        run("train", *QUICK[:2], *data, "--output", tmp_path / f"run-{name}")
        metrics = json.loads((tmp_path / f"run-{name}" / "metrics.json").read_text())
        said[name] = metrics["features"]
    assert said["timeline"].startswith("SIMULATED")
    assert said["zero.h5"] == f"HDF5 features zero.h5: {said['timeline']}"
    assert said["one.h5"] == said["zero.h5"].replace("zero", "one").replace("seed 0", "seed 1")
