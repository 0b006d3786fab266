"""Named configurations of model and training."""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tmapdiff._checks import check_choice
from tmapdiff.models import MomentLocalizer
from tmapdiff.training import TrainingConfig


@dataclass(frozen=True)
class Preset:
    """A model's size and how it is trained.

    Attributes:
        description: What it is for, in a line.
        grid: Fields of `MapGrid`.
        encoder: Fields of `MultimodalEncoder` that the data do not decide.
        decoder: Fields of `MapDiffusionDecoder`.
        scheduler: Fields of `MapScheduler`.
        localizer: The other fields of `MomentLocalizer`.
        training: How it is trained.
    """

    description: str
    grid: dict[str, int]
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)
    localizer: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def build(
        self,
        *,
        vocabulary_size: int,
        clip_channels: int,
        encoder: dict[str, Any] | None = None,
        **localizer: Any,
    ) -> MomentLocalizer:
        """Make a model of this size with random weights.

        Args:
            vocabulary_size: Words, padding and unknown word included.
            clip_channels: Channels of the video features.
            encoder: Fields of the encoder to change, for example `word_channels`.
            **localizer: Fields of the localizer to change, for example `objective`.

        Raises:
            ArgumentError, ConfigError: If a size is out of range or a field unknown.
        """
        data = {"vocabulary_size": vocabulary_size, "clip_channels": clip_channels}
        channels = self.encoder["channels"]
        return MomentLocalizer(
            encoder_config={**self.grid, **data, **self.encoder, **(encoder or {})},
            decoder_config={**self.grid, "feature_channels": channels, **self.decoder},
            scheduler_config=dict(self.scheduler),
            **{**self.localizer, **localizer},
        )


PRESETS = MappingProxyType(
    {
        "tiny": Preset(
            description="minutes on two CPU cores",
            grid={"num_clips": 32, "num_anchors": 8, "num_scales": 3},
            encoder={"channels": 64, "word_channels": 64, "num_text_layers": 1},
            decoder={"channels": 64, "time_channels": 128, "kernel_sizes": [5, 5]},
            training=TrainingConfig(epochs=8, learning_rate=1e-3),
        ),
        "base": Preset(
            description="minutes on one GPU",
            grid={"num_clips": 64, "num_anchors": 16, "num_scales": 3},
            encoder={"channels": 256, "num_text_layers": 2},
            decoder={"channels": 256, "time_channels": 256, "kernel_sizes": [9, 9]},
            training=TrainingConfig(epochs=12, learning_rate=5e-4),
        ),
        "paper": Preset(
            description="the paper's size on Charades-STA: 64 clips, 512 channels, 17x17 kernels",
            grid={"num_clips": 64, "num_anchors": 16, "num_scales": 3},
            encoder={"channels": 512, "num_text_layers": 3},
            decoder={"channels": 512, "time_channels": 512, "kernel_sizes": [17, 17]},
            training=TrainingConfig(epochs=20, learning_rate=1e-4),
        ),
    }
)


def get_preset(name: str) -> Preset:
    """Find a preset by name.

    Raises:
        ConfigError: If there is none of that name.
    """
    return PRESETS[check_choice("get_preset", "preset", name, PRESETS)]
