import json
import pickle

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.text_encoders import save_two_towers, tiny_text_encoder
from helpers.videos import make_images
from torch.nn.functional import normalize

from tmapdiff import FrameEncoder, TransformersTextEncoder
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, SizeLimitError
from tmapdiff.video import TransformersFrameEncoder, load_frame_encoder

transformers = pytest.importorskip("transformers")

WORDS = ["a", "person", "opens", "the", "door", "walks"]
SENTENCES = ["a person opens the door", "the person walks", "a door"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("clip", "siglip", "altclip")}
    return {kind: (path, save_two_towers(path, WORDS, kind)) for kind, path in made.items()}


@pytest.mark.parametrize("kind", ["clip", "siglip", "altclip"])
def test_similarities_are_those_of_transformers(folders, kind):
    folder, whole = folders[kind]
    images = [*make_images(3), *make_images(1, 50, 3), *make_images(1, 3, 50)]
    frames = TransformersFrameEncoder(folder).encode(images, batch_size=2)
    sentences = TransformersTextEncoder(folder)(SENTENCES).sentences
    assert_close(frames.norm(dim=1), torch.ones(5))

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        SENTENCES, padding="max_length", max_length=12, return_tensors="pt"
    )
    if kind == "siglip":  # which learned without a mask
        tokens.pop("attention_mask")
    tokens.pop("token_type_ids", None)
    options = {"return_tensors": "pt", "input_data_format": "channels_last"}
    pixels = torch.cat([processor(one, **options)["pixel_values"] for one in images])
    with torch.no_grad():
        logits = whole(pixel_values=pixels, **tokens).logits_per_image
        logits = (logits - getattr(whole, "logit_bias", 0)) / whole.logit_scale.exp()
    assert_close(frames @ normalize(sentences, dim=1).T, logits)
    assert logits.std(dim=1).min() > 1e-3  # sentences differ


def test_only_the_image_tower_of_clip_and_siglip_is_kept(folders, tmp_path):
    images = make_images(2)
    for kind, precision in (("clip", "bf16"), ("siglip", "no"), ("altclip", "no")):
        folder, whole = folders[kind]
        encoder = TransformersFrameEncoder(folder, mixed_precision=precision)
        parameters = sum(one.numel() for one in encoder.model.parameters())
        everything = sum(one.numel() for one in whole.parameters())
        assert (parameters < everything) == (kind != "altclip")
        encoder.save_pretrained(tmp_path)  # over the one before
        (tmp_path / "notes.txt").touch()
        again = load_frame_encoder(tmp_path)
        assert type(again) is TransformersFrameEncoder
        assert torch.equal(again.encode(images), encoder.encode(images))
        assert again.fingerprint == encoder.fingerprint
        assert again.description == encoder.description == f"transformers {folder}"
        assert again.mixed_precision == precision
    assert (tmp_path / "notes.txt").exists()
    FrameEncoder("test_resnet", pretrained=False).save_pretrained(tmp_path / "timm")
    assert type(load_frame_encoder(tmp_path / "timm")) is FrameEncoder


def test_fingerprints_tell_pixels_and_weights_apart(folders):
    folder, whole = folders["clip"]
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    found = [
        TransformersFrameEncoder(folder).fingerprint,
        TransformersFrameEncoder(folder, processor).fingerprint,
        TransformersFrameEncoder(whole, processor).fingerprint,
    ]
    assert len(set(found)) == 3
    assert TransformersFrameEncoder(folder, processor).fingerprint == found[1]


def test_preprocessing_can_be_sent_to_workers(folders):
    encoder = TransformersFrameEncoder(folders["clip"][0])
    twin = pickle.loads(pickle.dumps(encoder.preprocess))
    image = make_images(1)[0]
    assert torch.equal(twin(image), encoder.preprocess(image))
    assert len(pickle.dumps(encoder.preprocess)) < 10_000  # without the model


def test_what_is_no_two_tower_model(folders, tmp_path, monkeypatch):
    folder, whole = folders["clip"]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vit = transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1, **sizes))
    large = transformers.CLIPImageProcessor()  # 224 instead of 32
    many = transformers.CLIPImageProcessor(do_center_crop=False)
    tiny_text_encoder(WORDS).save_pretrained(tmp_path)
    name = "openai/clip-vit-base-patch32"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for kind, given, text in (
        (ArgumentError, (whole,), "expected an image_processor for the model, got none."),
        (ConfigError, (vit, large), "expected a model that embeds images and texts in one space"),
        (
            ConfigError,
            (whole, many),
            "expected an image processor with a fixed output size, got (3,",
        ),
        (CheckpointError, (whole, large), "cannot encode with CLIPModel: "),
        (CheckpointError, (tmp_path,), f"cannot load the image processor of {tmp_path}: "),
        (CheckpointError, (name,), f"cannot load {name}: "),
    ):
        with refuses(kind, f"TransformersFrameEncoder: {text}"):
            TransformersFrameEncoder(*given)
    with refuses(ConfigError, "expected mixed_precision to be one of no, fp16, bf16, got 'int8'."):
        TransformersFrameEncoder(folder, mixed_precision="int8")


def test_a_folder_brings_no_code_and_no_large_images(tmp_path):
    save_two_towers(tmp_path, WORDS)
    path = tmp_path / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"auto_map": {"AutoImageProcessor": "evil.Evil"}}
    path.write_text(json.dumps({**saved, **auto_map}))
    TransformersFrameEncoder(tmp_path)
    path.write_text(json.dumps({**saved, **auto_map, "image_processor_type": "Evil"}))
    with refuses(CheckpointError, "cannot load the image processor of "):
        TransformersFrameEncoder(tmp_path)
    assert not ran.exists()
    for change in (
        {"size": {"shortest_edge": 100_000}},
        {"crop_size": {"height": 10**9, "width": 1}},
        {"image_mean": [float("nan"), 0, 0]},
        {"size": "all"},
        {"image_std": []},
    ):
        path.write_text(json.dumps({**saved, **change}))
        with refuses(CheckpointError, "TransformersFrameEncoder: "):
            TransformersFrameEncoder(tmp_path)
            pytest.fail(str(change))
    path.write_text(" " * 70_000_000)
    with refuses(SizeLimitError, "expected a text of at most"):
        TransformersFrameEncoder(tmp_path)
    path.write_text(json.dumps(saved))
    config = tmp_path / "config.json"
    document = json.loads(config.read_text())
    document["vision_config"]["intermediate_size"] = 10**9
    config.write_text(json.dumps(document))
    with refuses(CheckpointError, "its configuration declares", "bytes of weights, in"):
        TransformersFrameEncoder(tmp_path)
    document["vision_config"]["intermediate_size"] = 24
    config.write_text(json.dumps(document))
    TransformersFrameEncoder(tmp_path).save_pretrained(tmp_path / "tower")
    config = tmp_path / "tower" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tmapdiff": 3}))
    with refuses(CheckpointError, f"tmapdiff of {tmp_path / 'tower'} to be an object, got 3."):
        TransformersFrameEncoder(tmp_path / "tower")
