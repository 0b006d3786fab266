"""Named configurations of model and training."""

import fnmatch
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from tmapdiff._core.checks import message
from tmapdiff.errors import UnknownNameError
from tmapdiff.maps import MapGrid
from tmapdiff.models import MS2DTAN, MomentLocalizer, SimilarityLocalizer
from tmapdiff.training import TrainingConfig


@dataclass(frozen=True)
class Preset:
    """Size and training settings of a model.

    Attributes:
        description: Its purpose, in one line.
        measured: Data and time of its training.
        grid: Fields of `MapGrid`.
        encoder: Fields of `MultimodalEncoder` that do not depend on the data.
        decoder: Fields of `MapDiffusionDecoder`.
        scheduler: Fields of `MapScheduler`.
        localizer: The other fields of `MomentLocalizer`.
        training: Training settings.
    """

    description: str
    grid: dict[str, int]
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)
    localizer: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    measured: str = "never trained"

    def as_published(self) -> "Preset":
        """Return a preset of the same sizes and training, but with the paper's settings."""
        return replace(
            self,
            encoder={
                k: v for k, v in self.encoder.items() if k not in {**_BEST_ENCODER, **_ALIGNED}
            },
            decoder={k: v for k, v in self.decoder.items() if k not in _BEST_DECODER},
            localizer={},
        )

    def make_grid(self) -> MapGrid:
        """Build the grid of candidate moments."""
        return MapGrid(**self.grid)

    def build(
        self,
        *,
        vocabulary_size: int | None,
        clip_channels: int,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        **localizer: Any,
    ) -> MomentLocalizer:
        """Build a model of this size with random weights.

        Changes to one part also update the other: the decoder's `feature_channels` follow the
        encoder's `channels`, and both have the same grid.

        Args:
            vocabulary_size: Words, including padding and the unknown word; None if words are
                features (of `encoder={"text_channels": ...}` channels; with `aligned`, defaults to
                `clip_channels`).
            clip_channels: Channels of the video features.
            encoder: Encoder fields to change, for example `word_channels`.
            decoder: Decoder fields to change, for example one of `DECODERS`.
            **localizer: Localizer fields to change, for example `objective`.

        Raises:
            ArgumentError, ConfigError: If a size is out of range or a field is unknown.
        """
        encoder, decoder = encoder or {}, decoder or {}
        changed = {**encoder, **decoder}
        grid = {name: changed.get(name, size) for name, size in self.grid.items()}
        encoder = self._encoder_config(vocabulary_size, clip_channels, {**grid, **encoder})
        channels = {"feature_channels": encoder["channels"]}
        return MomentLocalizer(
            encoder_config=encoder,
            decoder_config={**grid, **channels, **self.decoder, **decoder},
            scheduler_config=dict(self.scheduler),
            **{**self.localizer, **localizer},
        )

    def build_ms2dtan(
        self,
        *,
        vocabulary_size: int | None,
        clip_channels: int,
        encoder: dict[str, Any] | None = None,
        **model: Any,
    ) -> MS2DTAN:
        """Build the baseline with this encoder and these kernels, with random weights.

        `vocabulary_size`, `clip_channels`, `encoder` and errors are as for `build`; `**model` are
        fields of `MS2DTAN` to change, for example `objective`.
        """
        read = {name: self.localizer[name] for name in _READING if name in self.localizer}
        fields = {"kernel_sizes": self.decoder["kernel_sizes"], **read, **model}
        config = self._encoder_config(vocabulary_size, clip_channels, encoder)
        return MS2DTAN(encoder_config=config, **fields)

    def build_similarity(self, *, clip_channels: int, **model: Any) -> SimilarityLocalizer:
        """Build the localizer without a decoder, on this grid.

        `clip_channels` are the channels of the video features, `**model` fields of
        `SimilarityLocalizer` to change, for example `spaces`. Errors are as for `build`.
        """
        names = (*_READING, "target_power")
        read = {name: self.localizer[name] for name in names if name in self.localizer}
        pooled = {"features_per_clip": self.encoder.get("features_per_clip", 1)}
        return SimilarityLocalizer(clip_channels, **{**self.grid, **pooled, **read, **model})

    def _encoder_config(
        self, vocabulary_size: int | None, clip_channels: int, changes: dict[str, Any] | None
    ) -> dict[str, Any]:
        data = {"vocabulary_size": vocabulary_size, "clip_channels": clip_channels}
        fields = {**self.grid, **data, **self.encoder, **(changes or {})}
        if fields.get("aligned") and vocabulary_size is None:
            fields.setdefault("text_channels", clip_channels)
        return fields


_READING = ("ranking", "nms_threshold")  # shared by all models of a preset

# Settings that won on held-out training videos and differ from the paper (docs/research-log.md).
_BEST_ENCODER = {"map_layer": "max-pool", "dropout": 0.3, "word_dropout": 0.15}
_ALIGNED: dict[str, Any] = {
    "aligned": True,
    "aligned_parts": ["sentence", "sequence"],
    "features_per_clip": 2,
}
_BEST_DECODER = {"conditioning": "multiply"}
_BEST_LOCALIZER = {
    "objective": "mse-rescaled",
    "ranking": "expected-hits",
    "timestep_power": 2.0,
    "num_inference_steps": 1,
}

# The rows of Table 3, as fields of `MapDiffusionDecoder`.
_TRANSFORMER = {"architecture": "transformer", "norm": "layer"}
DECODERS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "transformer-xattn-ss": {
            **_TRANSFORMER,
            "conditioning": "cross-attention",
            "joint_scales": True,
        },
        "transformer-xattn": {**_TRANSFORMER, "conditioning": "cross-attention"},
        "transformer-concat": {**_TRANSFORMER, "conditioning": "concat"},
        # The best of three products on held-out training videos (docs/research-log.md).
        "cnn-mul": {"conditioning": "multiply"},
        "cnn-concat": {"conditioning": "concat"},
    }
)


FORMER_NAMES: Mapping[str, str] = MappingProxyType({"best": "nano_tuned", "base": "large"})


class _Presets(UserDict[str, Preset]):
    """Presets by name. Former names work, but are not listed."""

    def __contains__(self, name: object) -> bool:
        return name in self.data or name in FORMER_NAMES

    def __missing__(self, name: str) -> Preset:
        if name in FORMER_NAMES:
            return self.data[FORMER_NAMES[name]]
        expected = f"one of {', '.join(self)}"
        raise UnknownNameError(message("PRESETS", expected, repr(name)))


_SMALL_GRID = {"num_clips": 16, "num_anchors": 8, "num_scales": 2}
_LARGE_GRID = {"num_clips": 64, "num_anchors": 16, "num_scales": 3}
_SMALL_DECODER = {"channels": 32, "time_channels": 64, "kernel_sizes": [5, 5]}
_SMALL_TEXT = {"word_channels": 64, "num_text_layers": 1}

PRESETS = MappingProxyType(
    _Presets(
        nano=Preset(
            description="the smallest, with the paper's settings",
            measured="Charades-STA with simulated features, 3 to 5 minutes on one core",
            grid={**_SMALL_GRID},
            encoder={"channels": 32, **_SMALL_TEXT},
            decoder={**_SMALL_DECODER, "num_layers": 2, "num_heads": 2},
            training=TrainingConfig(epochs=6, learning_rate=4e-3),
        ),
        nano_tuned=Preset(
            description="as small, with the settings that did best on held-out videos",
            measured="Charades-STA with simulated features, 4 minutes on one core",
            grid={**_SMALL_GRID},
            encoder={"channels": 128, **_SMALL_TEXT, **_BEST_ENCODER},
            decoder={**_SMALL_DECODER, **_BEST_DECODER},
            localizer={**_BEST_LOCALIZER},
            training=TrainingConfig(epochs=6, learning_rate=2e-3),
        ),
        aligned=Preset(
            description="for features that share a space with the sentence: CLIP, SigLIP, captions",
            measured="QVHighlights with captions, 3 to 5 minutes on two cores",
            grid={"num_clips": 40, "num_anchors": 10, "num_scales": 3},
            encoder={**_SMALL_TEXT, **_ALIGNED, "channels": 32, "dropout": 0.2},
            decoder={**_SMALL_DECODER, **_BEST_DECODER},
            localizer={**_BEST_LOCALIZER},
            training=TrainingConfig(epochs=12, learning_rate=3e-3),
        ),
        tiny=Preset(
            description="the default: finer maps, wider layers",
            measured="Charades-STA with simulated features, 16 minutes on two cores, early version",
            grid={"num_clips": 32, "num_anchors": 8, "num_scales": 3},
            encoder={"channels": 64, **_SMALL_TEXT},
            decoder={**_SMALL_DECODER, "channels": 64, "time_channels": 128, "num_heads": 4},
            training=TrainingConfig(epochs=8, learning_rate=1e-3),
        ),
        large=Preset(
            description="for one GPU, with the settings of nano_tuned",
            grid={**_LARGE_GRID},
            encoder={"channels": 256, "num_text_layers": 2, **_BEST_ENCODER},
            decoder={
                "channels": 256,
                "time_channels": 256,
                "kernel_sizes": [9, 9],
                **_BEST_DECODER,
            },
            localizer={**_BEST_LOCALIZER},
            training=TrainingConfig(epochs=12, learning_rate=5e-4),
        ),
        paper=Preset(
            description="the paper's size on Charades-STA: 512 channels, 17x17 kernels",
            grid={**_LARGE_GRID},
            encoder={"channels": 512, "num_text_layers": 3},
            decoder={"channels": 512, "time_channels": 512, "kernel_sizes": [17, 17]},
            # The only winning setting that the paper does not specify.
            localizer={"timestep_power": 2.0},
            training=TrainingConfig(epochs=20, learning_rate=1e-4),
        ),
    )
)


def list_models(filter: str = "*") -> list[str]:
    """List the names of presets that match a shell pattern, `filter`, as in timm."""
    return sorted(fnmatch.filter(PRESETS, filter))


def create_model(
    name: str, *, vocabulary_size: int | None, clip_channels: int, **overrides: Any
) -> MomentLocalizer:
    """Build the model of the preset `name`, one of `list_models()`, with random weights.

    `vocabulary_size`, `clip_channels` and `**overrides` are as for `Preset.build`.

    Raises:
        UnknownNameError: If there is no such preset.
        ArgumentError, ConfigError: If a size is out of range or a field is unknown.

    Example:
        >>> model = create_model("nano", vocabulary_size=99, clip_channels=4, objective="bce-full")
    """
    return PRESETS[name].build(
        vocabulary_size=vocabulary_size, clip_channels=clip_channels, **overrides
    )
