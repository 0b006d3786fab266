import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw, randomize_
from helpers.fields import ENCODER as SMALLEST
from helpers.migration import recording
from torch import Tensor

from tmapdiff import temporal_iou
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError
from tmapdiff.models import MS2DTAN

RECORDINGS = {
    "ms2dtan-conv": {},
    "ms2dtan-max-pool": {"map_layer": "max-pool", "features_per_clip": 2},
    "ms2dtan-lengths": {},
}
ENCODER = {**SMALLEST, "vocabulary_size": 9, "clip_channels": 3}
MEAN = {**ENCODER, "map_layer": "mean"}


def tiny(**fields: object) -> MS2DTAN:
    torch.manual_seed(0)
    return MS2DTAN(encoder_config=ENCODER, **{"kernel_sizes": [3, 3], **fields})


def inputs(batch: int = 3) -> dict[str, Tensor]:
    return {
        "features": draw(batch, 8, 3),
        "words": torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]])[:batch],
        "num_words": torch.tensor([3, 2, 1])[:batch],
    }


def training_inputs() -> dict[str, Tensor]:
    return {
        **inputs(),
        "moments": torch.tensor([[0.0, 4.0], [6.0, 14.0], [2.0, 8.0]]),
        "clip_seconds": torch.full((3,), 2.0),
    }


class Recording:
    """Weights, inputs and outputs of the public implementation; see data/README.md."""

    def __init__(self, name: str) -> None:
        tensors = recording(name)
        prefix = "weights."
        self.weights = {
            key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)
        }
        self.tensors = tensors
        vectors = tensors["words"]
        batch, length, channels = vectors.shape
        # One word per word vector; 0 is padding.
        self.words = torch.arange(1, batch * length + 1).reshape(batch, length)
        self.vectors = torch.cat([torch.zeros(1, channels), vectors.flatten(0, 1)])
        encoder = {
            **SMALLEST,
            "num_clips": 16,
            "num_scales": 3,
            "vocabulary_size": len(self.vectors),
            "clip_channels": tensors["features"].shape[-1],
            "word_channels": channels,
            "num_text_layers": 2,
        }
        self.model = MS2DTAN(
            encoder_config={**encoder, **RECORDINGS[name]}, kernel_sizes=[5, 3]
        ).eval()

    def load(self, prefix: str = "") -> MS2DTAN:
        self.model.load_public_state_dict({f"{prefix}{k}": v for k, v in self.weights.items()})
        self.model.encoder.load_word_vectors(self.vectors)
        return self.model

    def inputs(self) -> dict[str, Tensor]:
        return {
            "features": self.tensors["features"],
            "words": self.words,
            "num_words": self.tensors["num_words"],
            "num_clips": self.tensors["num_clips"],
        }


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", RECORDINGS)
@torch.no_grad()
def test_equals_the_public_implementation(name, prefix):
    recorded = Recording(name)
    model, given = recorded.load(prefix), recorded.inputs()
    # A batch of videos of different lengths: rows after their ends must not matter.
    clips = torch.arange(given["features"].shape[1]) // model.encoder.config.features_per_clip
    outside = clips >= given["num_clips"][:, None]
    given["features"] = given["features"].masked_fill(outside[..., None], 7.0)
    maps = model.predict_maps(**given)
    scores = model.score(**given)
    grid = model.grid.resized(given["features"].shape[1] // model.encoder.config.features_per_clip)
    for scale, found in enumerate(grid.unpack(maps)):
        expected = recorded.tensors[f"probabilities.{scale}"]
        valid = recorded.tensors[f"masks.{scale}"].bool()
        assert_same(grid.mask(scale, num_clips=given["num_clips"]), valid)
        assert float(expected[valid].std()) > 0.05
        torch.testing.assert_close(found, expected * valid, rtol=0, atol=1e-5)
        logits = expected.logit().where(valid, 0)
        torch.testing.assert_close(scores[scale], logits, rtol=1e-4, atol=1e-5)


def test_has_the_published_number_of_parameters():
    encoder = {
        **ENCODER,
        "num_clips": 64,
        "num_anchors": 16,
        "num_scales": 3,
        "clip_channels": 1024,
        "word_channels": 300,
        "channels": 512,
        "num_text_layers": 3,
    }
    with torch.device("meta"):
        model = MS2DTAN(encoder_config=encoder)
    words = model.encoder.text_encoder.embedding.weight.numel()
    # Count of the public code for its MS-2D-TAN-G-I3D configuration for Charades-STA.
    assert sum(one.numel() for one in model.parameters()) - words == 477_885_449


CONV = "convs.0.layers.1.conv.weight"


@pytest.mark.parametrize(
    ("name", "size", "text"),  # without the weights if there is no size
    [
        ("pred_modules.1.predictor.bias", None, "it has no weights: heads.1.bias (1 in all)."),
        ("optimizer", 1, "it has unknown weights: optimizer (1 in all)."),
        ("pred_modules.3.predictor.bias", 1, "it has weights of further layers: heads.3.bias (1 "),
        ("pred_modules.0.predictor.bias", 2, "expected heads.0.bias of shape (1,), got (2,)."),
        ("map_modules.0.blocks.1.1.weight", None, f"expected {CONV} of shape (9, 8, 3, 3), got (8"),
        ("map_modules.0.blocks.1.0.weight", None, f"it has no weights: {CONV} (1 in all)."),
    ],
)
def test_refuses_other_weights_and_changes_nothing(name, size, text):
    recorded = Recording("ms2dtan-conv")
    model, weights = recorded.model, recorded.weights
    weights.pop(name, None)
    if size is not None:
        weights[name] = torch.zeros(size)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with refuses(CheckpointError, f"MS2DTAN.load_public_state_dict: {text}"):
        model.load_public_state_dict(weights)
    for name, one in model.state_dict().items():
        assert_same(one, before[name], name)


def test_loss_is_the_sum_of_the_scales_means():
    model = randomize_(tiny()).eval()
    given = training_inputs()
    found = model.loss(**given)
    scores = model.score(**inputs())
    iou = model.build_iou_maps(given["moments"], given["clip_seconds"])
    expected = 0.0
    for scale in range(2):
        mask = model.grid.mask(scale)
        target = ((iou[scale] - 0.5) * 2).clamp(0, 1)[:, mask]
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            scores[scale][:, mask], target
        )
        expected = expected + losses
    torch.testing.assert_close(found, expected)


@pytest.mark.train
def test_learns_three_queries():
    model, given = tiny().train(), training_inputs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(120):
        loss = model(**given)
        loss.backward()
        dead = [name for name, one in model.named_parameters() if one.grad is None]
        assert dead == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    # In training mode, as running statistics do not match three samples yet.
    found = model.localize(**inputs(), clip_seconds=given["clip_seconds"], top_n=1)
    assert float(temporal_iou(found.ranked.moments[:, 0], given["moments"]).min()) > 0.7


@torch.no_grad()
def test_maps_are_probabilities_of_valid_cells():
    model = randomize_(tiny()).eval()
    maps = model.predict_maps(**inputs())
    valid = model.grid.packed_mask()
    assert_zero(maps, ~valid)
    assert bool(((maps[:, valid] > 0) & (maps[:, valid] < 1)).all())
    assert not model.is_generative
    assert_close(maps, model.grid.pack(model.score(**inputs())).sigmoid() * valid)


def test_save_and_load(tmp_path):
    model = randomize_(tiny(gate="channel", objective="mse-full")).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = MS2DTAN.from_pretrained(tmp_path / "model")
    assert loaded.objective.name == "mse-full"
    assert_same(loaded.predict_maps(**inputs()), model.predict_maps(**inputs()))


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"kernel_sizes": []}, ConfigError, "MS2DTAN: expected kernel_sizes to be a list of at"),
        ({"kernel_sizes": [4]}, ConfigError, "expected an odd kernel_size, got 4."),
        ({"gate": "x"}, ConfigError, "gate to be one of shared, channel, got 'x'."),
        ({"objective": "mse"}, ConfigError, "MS2DTAN: expected objective to be one of mse-full"),
        ({"nms_threshold": 2}, ArgumentError, "MS2DTAN: expected nms_threshold in [0, 1], got 2."),
        ({"kernels": [3]}, ConfigError, "kernels"),
        ({"encoder_config": MEAN}, ConfigError, "expected layer to be one of conv, max-pool, got"),
    ],
)
def test_refuses(fields, kind, text):
    with refuses(kind, text):
        MS2DTAN.from_config({"encoder_config": ENCODER, "kernel_sizes": [3], **fields})
