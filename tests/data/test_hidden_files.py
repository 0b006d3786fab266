"""Hidden files are not the user's, such as those that macOS leaves beside each file."""

import json

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.datasets import query_line, write_store
from helpers.videos import write_video

from tmapdiff import open_feature_store
from tmapdiff.conversion import convert_features
from tmapdiff.data import find_annotations, load_annotations
from tmapdiff.errors import FileError
from tmapdiff.inspection import inspect
from tmapdiff.inspection.features import _unfinished
from tmapdiff.video import FeatureStoreWriter

from .test_activitynet import CAPTIONS
from .test_didemo import RECORDS

HIDDEN = ("._{}", ".{}", ".DS_Store")
JUNK = b"\0\5\x16\7\0\2\0\0Mac OS X        "


def hide_beside(folder, name):
    for hidden in HIDDEN:
        (folder / hidden.format(name)).write_bytes(JUNK)
    return folder


@pytest.mark.parametrize("kind", ["npy", "npz", "pt"])
def test_folders_of_features(tmp_path, kind):
    arrays = {name: np.full((3, 2), len(name), np.float32) for name in ("AO8RW", "b")}
    folder = write_store(tmp_path / "features", kind, arrays)
    for name in ("AO8RW.npy", "AO8RW.npz", "b.pt"):
        hide_beside(folder, name)
    store = open_feature_store(folder)
    assert store.video_ids == ("AO8RW", "b")
    assert "._AO8RW" not in store
    assert inspect(folder).findings == ()
    for target in ("new.h5", "new"):
        report = convert_features(folder, tmp_path / target, format=None if "." in target else kind)
        assert (report.converted, report.skipped) == (("AO8RW", "b"), ())
        hide_beside(tmp_path / "new" if target == "new" else tmp_path, "x.npy")
        again = convert_features(folder, tmp_path / target, format=report.format)
        assert again.kept == ("AO8RW", "b")


def test_a_folder_of_nothing_else_has_no_features(tmp_path):
    hide_beside(tmp_path, "AO8RW.npy")
    with refuses(FileError, "expected an HDF5 file, or a folder", "got 0 entries (empty) in"):
        open_feature_store(tmp_path)


def test_parts_of_a_store(tmp_path):
    with FeatureStoreWriter(tmp_path / "a.h5", {}) as writer:
        writer.write("AO8RW", np.ones((3, 2)), {})
        hide_beside(writer.parts, "AO8RW.npz")
    (finding,) = _unfinished(tmp_path / "a.h5")
    assert finding.items == ("AO8RW",)
    with FeatureStoreWriter(tmp_path / "a.h5", {}) as writer:
        assert len(writer) == 1
        writer.finish()
    assert not (tmp_path / "a.h5.parts").exists()
    assert open_feature_store(tmp_path / "a.h5").video_ids == ("AO8RW",)


def test_folders_of_videos(tmp_path):
    pytest.importorskip("av")
    from tmapdiff import FrameEncoder, extract_features

    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", range(4))
    hide_beside(tmp_path / "videos", "a.mp4")
    found = inspect(tmp_path / "videos")
    assert (found.findings, found.facts["videos"]["videos"]) == ((), 1)
    torch.manual_seed(0)
    encoder = FrameEncoder("test_resnet", pretrained=False)
    report = extract_features(tmp_path / "videos", encoder, tmp_path / "a.h5", fps=1)
    assert (report.extracted, report.skipped) == (("a",), ())


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("train.jsonl", query_line(), 1),
        ("train.json", {"v_c": CAPTIONS["v_c"]}, 1),
        ("train_data.json", RECORDS, 2),
    ],
)
def test_folders_of_annotations(tmp_path, name, content, count):
    (tmp_path / name).write_text(json.dumps(content))
    hide_beside(tmp_path, name)
    assert [one.path.name for one in find_annotations(tmp_path)] == [name]
    assert len(load_annotations(tmp_path, "train")) == count
    assert inspect(tmp_path).findings == ()


def test_the_digest_of_a_pipeline(tmp_path):
    pytest.importorskip("pyarrow")
    from tmapdiff.corpus import _digest_of

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    before = _digest_of(tmp_path)
    hide_beside(tmp_path, "model")
    hide_beside(tmp_path / "model", "config.json")
    assert _digest_of(tmp_path) == before
    (tmp_path / "model" / "more.json").write_text("{}")
    assert _digest_of(tmp_path) != before
