from dataclasses import replace

import pytest
import torch
from helpers.assertions import refuses

from tmapdiff.errors import ConfigError, UnknownNameError
from tmapdiff.models import MomentLocalizer
from tmapdiff.presets import DECODERS, FORMER_NAMES, PRESETS, create_model, list_models
from tmapdiff.recipes import Recipe


def sizes(name, words=10, clip_channels=4):
    is_aligned = "aligned" in PRESETS[name].encoder  # which reads word features
    return {"vocabulary_size": None if is_aligned else words, "clip_channels": clip_channels}


def batch_of(rows, width, words=None):
    """Two queries, without their moments, whose words are features if these are given."""
    return {
        "features": torch.randn(2, rows, width),
        "words": torch.tensor([[1, 2, 3], [4, 5, 0]]) if words is None else words,
        "num_words": torch.tensor([3, 2]),
        "clip_seconds": torch.tensor([0.5, 1.0]),
    }


def test_paper_preset_has_the_paper_s_sizes():
    preset = PRESETS["paper"]
    assert preset.grid == {"num_clips": 64, "num_anchors": 16, "num_scales": 3}
    assert preset.decoder["kernel_sizes"] == [17, 17]
    assert preset.encoder == {"channels": 512, "num_text_layers": 3}
    with torch.device("meta"):
        model = preset.build(vocabulary_size=100, clip_channels=4096)
    convolutions = [conv.conv.weight.shape for conv in model.decoder.decoders[0].convs]
    assert convolutions == [(513, 1024, 17, 17), (513, 512, 17, 17)]


def test_models_are_made_and_listed_in_timm_s_manner():
    assert list_models() == sorted(PRESETS)
    assert list_models("*n*") == ["aligned", "nano", "nano_tuned", "tiny"]
    with pytest.raises(UnknownNameError):
        create_model("huge", vocabulary_size=10, clip_channels=4)
    model = create_model(
        "tiny", vocabulary_size=10, clip_channels=4, encoder={"word_channels": 7},
        objective="bce-full",
    )  # fmt: skip
    assert model.encoder.text_encoder.embedding.weight.shape == (10, 7)
    assert model.objective.name == "bce-full"


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        *((name, {"num_anchors": 4, "channels": 24}, {"num_scales": 1}) for name in PRESETS),
        ("nano", {"channels": 24}, {}),
        ("nano", {"channels": 24}, {"channels": 16}),
        ("nano", {"num_clips": 128}, {}),
        ("nano", {}, {"num_clips": 128}),
        ("nano", {"num_clips": 128}, {"num_clips": 128}),
    ],
)
def test_what_follows_from_a_changed_field_follows_its_change(name, encoder, decoder):
    preset = PRESETS[name]
    with torch.device("meta"):
        model = preset.build(**sizes(name), encoder=encoder, decoder=decoder)
        baseline = preset.build_ms2dtan(**sizes(name), encoder=encoder)
    changed = {**preset.grid, **encoder, **decoder}
    for field in preset.grid:
        assert getattr(model.grid, field) == model.encoder.config[field] == changed[field]
    channels = {**preset.encoder, **encoder}["channels"]
    assert model.encoder.config.channels == model.decoder.config.feature_channels == channels
    assert model.decoder.config.channels == {**preset.decoder, **decoder}["channels"]
    assert baseline.encoder.config.channels == channels


def test_changes_that_contradict_each_other_are_refused():
    size = {"vocabulary_size": 10, "clip_channels": 4}
    for encoder, decoder, text in (
        ({"num_clips": 32}, {"num_clips": 64}, "expected encoder and decoder with the same grid"),
        ({"channels": 24}, {"feature_channels": 16}, "expected the decoder's feature_channels"),
    ):
        with torch.device("meta"), refuses(ConfigError, text):
            PRESETS["nano"].build(**size, encoder=encoder, decoder=decoder)


def test_unknown_names_are_refused():
    expected = "PRESETS: expected one of nano, nano_tuned, aligned, tiny, large, paper, got 'huge'."
    with pytest.raises(UnknownNameError) as raised:
        PRESETS["huge"]
    assert str(raised.value) == expected
    assert isinstance(raised.value, ConfigError)
    assert isinstance(raised.value, KeyError)
    assert "huge" not in PRESETS
    assert PRESETS.get("huge") is None
    with pytest.raises(ConfigError, match="Did you mean word_channels"):
        PRESETS["tiny"].build(vocabulary_size=10, clip_channels=4, encoder={"word_chanels": 7})


def test_former_names_find_their_presets():
    assert FORMER_NAMES == {"best": "nano_tuned", "base": "large"}
    for former, name in FORMER_NAMES.items():
        assert former in PRESETS
        assert PRESETS[former] is PRESETS.get(former) is PRESETS[name]
        assert former not in list_models()
        assert Recipe(preset=former).preset_for("rank") == PRESETS[name]
    model = create_model("best", vocabulary_size=10, clip_channels=4)
    assert model.config == create_model("nano_tuned", vocabulary_size=10, clip_channels=4).config


def test_presets_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        PRESETS["tiny"] = PRESETS["large"]


@pytest.mark.parametrize(
    "name",
    ["nano", *(pytest.param(one, marks=pytest.mark.train) for one in PRESETS if one != "nano")],
)
def test_every_preset_trains_saves_loads_and_localizes(name, tmp_path):
    torch.manual_seed(0)
    preset = PRESETS[name]
    if name == "paper":  # at full size, it takes minutes and 9 GB
        narrow = {"channels": 64, "time_channels": 64}
        preset = replace(
            preset, encoder={**preset.encoder, "channels": 64}, decoder={**preset.decoder, **narrow}
        )
    model = preset.build(**sizes(name, clip_channels=16))
    clips = preset.grid["num_clips"]
    rows = clips * preset.encoder.get("features_per_clip", 1)
    batch = batch_of(rows, 16, torch.randn(2, 3, 16) if "aligned" in preset.encoder else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trained = "decoder.decoders.0.head.weight"
    before = model.state_dict()[trained].clone()
    loss = model.train()(**batch, moments=torch.tensor([[1.0, 4.0], [0.0, 7.0]]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert bool(loss.isfinite())
    assert not torch.equal(before, model.state_dict()[trained])

    model.eval().save_pretrained(tmp_path / name)
    expected = model.state_dict()[trained].clone()
    del model, optimizer, loss
    loaded = MomentLocalizer.from_pretrained(tmp_path / name)
    assert torch.equal(loaded.state_dict()[trained], expected)
    batch["features"] = batch["features"][:1]
    query = {key: value[:1] for key, value in batch.items()}
    found = loaded.localize(**query, num_inference_steps=1, generator=torch.manual_seed(0))
    assert bool(found.ranked.valid.all())
    assert float(found.ranked.moments.max()) <= clips * 0.5


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_trains_and_localizes(name, tmp_path):
    preset = PRESETS["nano"]
    model = preset.build(vocabulary_size=10, clip_channels=4, decoder=DECODERS[name])
    batch = batch_of(16, 4)
    model(**batch, moments=torch.tensor([[1.0, 4.0], [0.0, 7.0]])).backward()
    model.eval().save_pretrained(tmp_path)
    loaded = MomentLocalizer.from_pretrained(tmp_path)
    one, other = (
        each.localize(**batch, generator=torch.manual_seed(0)).ranked for each in (model, loaded)
    )
    assert torch.equal(one.moments, other.moments)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_baseline_with_its_encoder_and_kernels(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        ours = preset.build(**sizes(name, clip_channels=16))
        baseline = preset.build_ms2dtan(**sizes(name, clip_channels=16))
    assert baseline.config.encoder_config == ours.config.encoder_config
    assert baseline.config.kernel_sizes == ours.decoder.config.kernel_sizes
    assert baseline.objective.name == "bce-rescaled"
