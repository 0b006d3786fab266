import json

import h5py
import pytest
import torch
from helpers.text_encoders import save_two_towers
from helpers.videos import write_video

from tmapdiff.data import open_feature_store
from tmapdiff.recipes.frame_encoder import find_frame_encoder
from tmapdiff.video import FrameEncoder

from .conftest import ENCODER


def test_the_store_has_the_features_of_the_library(corpus):
    store = open_feature_store(corpus.features)
    assert sorted(store.video_ids) == ["one", "three", "two"]
    assert store.seconds_per_feature == 0.5
    torch.manual_seed(0)
    encoder = FrameEncoder("test_resnet", pretrained=False)
    assert store.attributes["model_sha256"] == encoder.fingerprint
    assert json.loads(store.attributes["frame_encoder"]) == encoder.arguments


def test_a_saved_encoder_makes_the_same_features(passes, corpus, tmp_path):
    options = ["--out", tmp_path / "again.h5", "--fps", 2, "--json"]
    found = passes("extract", corpus.videos, "--frame-encoder", corpus.encoder, *options)
    again, before = open_feature_store(tmp_path / "again.h5"), open_feature_store(corpus.features)
    assert sorted(found.document["extracted"]) == sorted(before.video_ids)
    for video in before.video_ids:
        assert torch.equal(again[video], before[video])


def test_a_file_that_is_not_a_video_is_reported_with_code_1(run, tmp_path):
    write_video(tmp_path / "good.mp4", [0, 1, 2])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    found = run("extract", tmp_path, *ENCODER, "--out", tmp_path / "x.h5", "--fps", 1)
    assert found.code == 1
    counts, skipped = found.out.splitlines()
    assert counts.endswith("1 videos extracted, 0 kept, 0 damaged, 1 skipped")
    assert skipped.startswith("skipped bad: ")
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file) == ["good"]


@pytest.mark.parametrize("again", [(), ("--skip-damaged",)])
def test_a_damaged_video_is_reported_with_code_1_even_if_it_is_kept(run, tmp_path, again):
    whole = write_video(tmp_path / "cut.mkv", range(40)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    command = ["extract", tmp_path / "cut.mkv", *ENCODER, "--out", tmp_path / "x.h5", "--fps", 1]
    for options, counts in (
        ((), "1 videos extracted, 0 kept"),
        (again, "0 videos extracted, 1 kept"),
    ):
        found = run(*command, *options)
        assert found.code == 1
        told, damaged = found.out.splitlines()
        assert told.endswith(f"{counts}, 1 damaged, 0 skipped")
        assert damaged.startswith("damaged cut: it ends at ")


def test_a_two_tower_model_of_transformers(run, corpus, tmp_path):
    save_two_towers(tmp_path / "clip", ["door"])
    options = ["--out", tmp_path / "clip.h5", "--fps", 2, "--save-encoder", tmp_path / "encoder"]
    found = run(
        "extract", corpus.videos / "one.mp4", "--model", f"hf:{tmp_path / 'clip'}", *options
    )
    assert found.code == 0
    store = open_feature_store(tmp_path / "clip.h5")
    assert store["one"].shape[1] == 8
    assert torch.allclose(store["one"].norm(dim=1), torch.ones(1))
    assert store.attributes["model"] == f"transformers {tmp_path / 'clip'}"
    found = find_frame_encoder(store, tmp_path / "encoder")
    assert (found.fps, found.encoder.feature_dim) == (2, 8)
    found = run("extract", corpus.videos, "--model", "hf:x/y", "--keep-head", *options)
    assert found.code == 2
