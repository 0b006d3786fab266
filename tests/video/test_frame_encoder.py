import json
import pickle

import numpy as np
import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.pipelines import make_frame_encoder
from helpers.videos import make_images

from tmapdiff import FrameEncoder
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError, ShapeError

timm = pytest.importorskip("timm")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def encoder():
    return make_frame_encoder()


def test_features_are_those_of_timm(encoder):
    images = make_images(5)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        expected = torch.cat([model(transform(Image.fromarray(one))[None]) for one in images])
    for batch_size in (1, 2, 5, 32):
        assert_close(encoder.encode(iter(images), batch_size), expected)
    assert encoder.feature_dim == 96
    assert encoder.description == "timm test_resnet, random weights"
    assert "test_resnet" in repr(encoder)


def test_images_of_any_size(encoder):
    images = [make_images(1, *size)[0] for size in ((30, 30), (500, 20), (224, 224), (1, 1))]
    features = encoder.encode(images)
    assert features.shape == (4, 96)
    assert features.isfinite().all()
    assert encoder.encode([]).shape == (0, 96)
    # Views that are not contiguous: mirrored and rotated.
    image = make_images(1)[0]
    turned = image.swapaxes(0, 1)[:, ::-1]
    assert torch.equal(encoder.encode([turned]), encoder.encode([np.ascontiguousarray(turned)]))


@pytest.mark.parametrize(
    ("name", "keep_head", "width"),
    [("test_vit", False, 64), ("test_vit", True, 1000), ("resnet18", True, 1000)],
)
def test_widths(name, keep_head, width):
    encoder = FrameEncoder(name, pretrained=False, keep_head=keep_head)
    assert encoder.feature_dim == width
    assert encoder.encode(make_images(2)).shape == (2, width)
    assert ("head" in encoder.description) == keep_head


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_half_precision(encoder, precision, dtype):
    half = make_frame_encoder(mixed_precision=precision)
    seen = []
    half.model.layer1[0].conv1.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    images = make_images(2)
    features = half.encode(images)
    assert seen == [dtype]
    assert features.dtype == torch.float32
    exact = encoder.encode(images)
    assert not torch.equal(features, exact)
    assert (features - exact).abs().max() < 0.02 * exact.abs().max()


def test_it_is_frozen(encoder):
    images = make_images(2)
    before = encoder.encode(images)
    torch.nn.Sequential(encoder).train()
    # Batch normalization would use the batch's statistics and change its own.
    assert torch.equal(encoder.encode(images), before)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not before.requires_grad


def test_fingerprint_tells_weights_apart():
    def digest(**options):
        return make_frame_encoder(**options).fingerprint

    assert digest() == digest()
    others = [digest(seed=1), digest(keep_head=True), digest(mixed_precision="bf16")]
    assert len({digest(), *others}) == 4


def test_preprocessing_can_be_sent_to_workers(encoder):
    twin = pickle.loads(pickle.dumps(encoder.preprocess))
    image = make_images(1)[0]
    assert torch.equal(twin(image), encoder.preprocess(image))
    assert len(pickle.dumps(encoder.preprocess)) < 10_000  # without the model


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    images = make_images(2)
    scores = FrameEncoder("test_resnet", weights=tmp_path / "weights.pth", keep_head=True)
    with torch.no_grad():
        expected = model.eval()(torch.stack([scores.preprocess(one) for one in images]))
    assert_close(scores.encode(images), expected)
    features = FrameEncoder("test_resnet", weights=tmp_path / "weights.pth").encode(images)
    with torch.no_grad():
        assert_close(model.get_classifier()(features), expected)
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with refuses(CheckpointError, "FrameEncoder: cannot load the weights of test_resnet: "):
        FrameEncoder("test_resnet", weights=tmp_path / "weights.pth")
    with refuses(FileError, f"expected a file {tmp_path / 'none.pth'}, got no such file."):
        FrameEncoder("test_resnet", weights=tmp_path / "none.pth")
    with refuses(ArgumentError, "expected pretrained with weights, got pretrained=False."):
        FrameEncoder("test_resnet", pretrained=False, weights=tmp_path / "weights.pth")


def test_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with refuses(CheckpointError, "FrameEncoder: cannot load the weights of resnet18: ", "Without"):
        FrameEncoder("resnet18")


def test_refusals(encoder):
    expected = "the name of a timm model, got"
    for name, text in (
        ("resnet_18", f"{expected} 'resnet_18'. See timm.list_models()."),
        ("qqqq", f"{expected} 'qqqq'. See timm.list_models()."),
        (3, f"{expected} 3."),
        ("resnet18.x", "a tag of the model's weights, got 'resnet18.x'. Known: resn"),
    ):
        with refuses(ConfigError, f"FrameEncoder: expected {text}"):
            FrameEncoder(name, pretrained=False)
    with refuses(ConfigError, "expected mixed_precision to be one of no, fp16, bf16, got 'int8'."):
        FrameEncoder("resnet18", pretrained=False, mixed_precision="int8")
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with refuses(ArgumentError, "expected an image of shape (H, W, 3) and dtype uint8, got ("):
            encoder.encode([wrong])
    with refuses(ArgumentError, "expected an image of shape (H, W, 3) and dtype uint8, got list."):
        encoder.encode([[1]])
    with refuses(ShapeError, "expected frames of shape (B, 3, 160, 160), got (2, 3, 9, 9)."):
        encoder(torch.zeros(2, 3, 9, 9))
    with refuses(ArgumentError, "expected batch_size to be an integer >= 1, got 0."):
        encoder.encode([], batch_size=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(encoder):
    images = make_images(3)
    features = make_frame_encoder(device="cuda").encode(images)
    assert features.device.type == "cpu"
    assert (features - encoder.encode(images)).abs().max() < 1e-2 * features.abs().max()


def test_a_preprocessing_unlike_timm_s(tmp_path):
    FrameEncoder("test_resnet", pretrained=False).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    for change in (
        {"input_size": [3, 100_000, 100_000]},
        {"input_size": [3, 1.5, 64]},
        {"input_size": 160},
        {"input_size": [3, 160]},
        {"crop_pct": 1e-9},
        {"crop_pct": "all"},
        {"mean": []},
        {"std": [1, 1, "x"]},
        {"std": [1, 1, 0.0]},
        {"mean": [0, 0, 1e60]},
        {"is_training": True},
    ):
        changed = {**saved, "preprocessing": {**saved["preprocessing"], **change}}
        path.write_text(json.dumps(changed))
        with refuses(CheckpointError, f"FrameEncoder: cannot load {tmp_path}"):
            FrameEncoder.from_pretrained(tmp_path)
            pytest.fail(str(change))


def test_what_was_saved_last_is_loaded(tmp_path):
    first = FrameEncoder("test_vit", pretrained=False)
    second = FrameEncoder("test_resnet", pretrained=False)
    for encoder in (first, second, first):
        encoder.save_pretrained(tmp_path)
        (tmp_path / "notes.txt").touch()
        assert FrameEncoder.from_pretrained(tmp_path).fingerprint == encoder.fingerprint
    assert {one.name for one in tmp_path.iterdir()} == {
        "config.json", "model.safetensors", "notes.txt",
    }  # fmt: skip


def test_a_saved_encoder_declares_no_more_than_its_weights(tmp_path):
    FrameEncoder("test_resnet", pretrained=False).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_classes": 0', '"num_classes": 1000000000'))
    with refuses(CheckpointError, "its configuration declares", "bytes of weights, in"):
        FrameEncoder.from_pretrained(tmp_path)
