import pytest
import torch

from tmapdiff import PRESETS
from tmapdiff.errors import ConfigError
from tmapdiff.presets import get_preset


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_builds(name):
    with torch.device("meta"):
        model = get_preset(name).build(vocabulary_size=100, clip_channels=32)
    assert model.grid.num_clips == PRESETS[name].grid["num_clips"]
    assert model.config.encoder_config["clip_channels"] == 32


def test_paper_preset_has_the_paper_s_sizes():
    preset = PRESETS["paper"]
    assert preset.grid == {"num_clips": 64, "num_anchors": 16, "num_scales": 3}
    assert preset.decoder["kernel_sizes"] == [17, 17]
    assert preset.encoder == {"channels": 512, "num_text_layers": 3}
    with torch.device("meta"):
        model = preset.build(vocabulary_size=100, clip_channels=4096)
    convolutions = [conv.conv.weight.shape for conv in model.decoder.decoders[0].convs]
    assert convolutions == [(513, 1024, 17, 17), (513, 512, 17, 17)]


def test_fields_can_be_changed():
    model = get_preset("tiny").build(
        vocabulary_size=10, clip_channels=4, encoder={"word_channels": 7}, objective="bce-full"
    )
    assert model.encoder.text_encoder.embedding.weight.shape == (10, 7)
    assert model.objective.name == "bce-full"


def test_unknown_names_are_refused():
    with pytest.raises(
        ConfigError, match="expected preset to be one of nano, tiny, base, paper, got"
    ):
        get_preset("huge")
    with pytest.raises(ConfigError, match="Did you mean word_channels"):
        get_preset("tiny").build(vocabulary_size=10, clip_channels=4, encoder={"word_chanels": 7})


def test_presets_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        PRESETS["tiny"] = PRESETS["base"]
