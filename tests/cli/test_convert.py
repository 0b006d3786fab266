import h5py
import numpy as np
import torch

from tmapdiff.data import open_feature_store


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


def test_errors_are_one_line(refused, tmp_path):
    error = refused("convert", tmp_path / "none", tmp_path / "b", "--json")
    assert error.startswith("open_feature_store: expected an HDF5 file")
