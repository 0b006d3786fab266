import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.videos import write_video
from safetensors.torch import save_file

from tmapdiff.data import ConcatFeatureStore, open_feature_store
from tmapdiff.errors import CheckpointError, FeatureError
from tmapdiff.recipes import find_frame_encoder
from tmapdiff.video import FrameEncoder, extract_features


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    encoder = FrameEncoder("test_resnet", pretrained=False, keep_head=True)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(encoder.model.state_dict(), path)
    return path


@pytest.fixture
def extracted(tmp_path):
    def extract(encoder):
        write_video(tmp_path / "a.mp4", range(5))
        path = tmp_path / "f.h5"
        extract_features([tmp_path / "a.mp4"], encoder, path, fps=2)
        return open_feature_store(path)

    return extract


def change(store, **attributes):
    """Copy a store with other attributes."""
    path = Path(tempfile.mkdtemp(dir=store.path.parent)) / store.path.name
    shutil.copy(store.path, path)
    with h5py.File(path, "a") as file:
        for name, value in attributes.items():
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
    return open_feature_store(path)


def test_an_encoder_with_a_file_of_weights_is_made_anew(extracted, weights):
    made = FrameEncoder("test_resnet", weights=weights, keep_head=True, mixed_precision="bf16")
    found = find_frame_encoder(extracted(made))
    assert found.encoder.fingerprint == made.fingerprint
    assert (found.fps, found.remark) == (2.0, "frame encoder: timm test_resnet with head")


def test_other_weights_at_the_same_place_do_not_count(extracted, weights, tmp_path):
    place = tmp_path / "w.safetensors"
    place.write_bytes(weights.read_bytes())
    store = extracted(FrameEncoder("test_resnet", weights=place, keep_head=True))
    assert find_frame_encoder(store).encoder is not None
    torch.manual_seed(1)
    other = FrameEncoder("test_resnet", pretrained=False, keep_head=True)
    save_file(other.model.state_dict(), place)
    found = find_frame_encoder(store)
    assert (found.encoder, found.fps) == (None, None)
    assert found.remark.endswith("as rebuilt is not the one that made the features")
    place.unlink()
    assert "no such file" in find_frame_encoder(store).remark


def test_what_a_stranger_s_store_says_is_not_loaded(extracted, weights):
    store = extracted(FrameEncoder("test_resnet", weights=weights, keep_head=True))
    for said, text in (
        ('{"model_name": "hf-hub:any/one", "pretrained": true}', "is untrusted"),
        ('{"model_name": "test_resnet", "pretrained": true, "weights": "/x/w.pth"}', "no safeten"),
        ('{"model_name": "test_resnet", "pretrained": false}', "random weights"),
        ('{"model_name": "test_resnet", "pretrained": true, "device": "x", "no": 1}', "argument"),
        ('{"model_name": "no_model", "pretrained": true}', "expected the name of a timm model"),
        ("[]", "'list'"),
        ("{", "the pipeline takes features, not videos: "),
    ):
        found = find_frame_encoder(change(store, frame_encoder=said))
        assert found.encoder is None
        assert text in found.remark
        assert "\n" not in found.remark
    found = find_frame_encoder(change(store, frame_encoder=None))
    assert found.remark.endswith("does not record its frame encoder")


def test_a_saved_encoder_must_be_the_one_that_made_the_features(extracted, tmp_path):
    torch.manual_seed(0)
    made, other = (FrameEncoder("test_resnet", pretrained=False) for _ in range(2))
    made.save_pretrained(tmp_path / "made")
    other.save_pretrained(tmp_path / "other")
    store = extracted(made)
    found = find_frame_encoder(store, tmp_path / "made")
    assert (found.encoder.fingerprint, found.fps) == (made.fingerprint, 2.0)
    with refuses(
        FeatureError, "expected an encoder with the 192 channels of", ", got 96 from timm"
    ):
        find_frame_encoder(ConcatFeatureStore([store, store]), tmp_path / "made")
    with refuses(FeatureError, "expected the encoder that made HDF5 features f.h5", "got another"):
        find_frame_encoder(store, tmp_path / "other")
    # Without a record of the encoder, any encoder is accepted.
    assert find_frame_encoder(change(store, model_sha256=None), tmp_path / "other").encoder
    with pytest.warns(UserWarning, match="of variable length"):
        # The format of earlier releases, which stores ignore.
        old = change(store, model_sha256=np.array(made.fingerprint, object))
    told = "does not record its frame encoder completely: recreate it with tmapdiff convert"
    with refuses(FeatureError, "find_frame_encoder: HDF5 features f.h5 ", told):
        find_frame_encoder(old, tmp_path / "other")
    assert told in find_frame_encoder(old).remark
    with refuses(CheckpointError, "cannot load"):
        find_frame_encoder(store, tmp_path / "none")
    without_rate = change(store, seconds_per_feature=None)
    with refuses(FeatureError, "expected the rate of HDF5 features f.h5"):
        find_frame_encoder(without_rate, tmp_path / "made")


def test_stores_that_say_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    found = find_frame_encoder(open_feature_store(tmp_path))
    assert (found.encoder, found.fps) == (None, None)
