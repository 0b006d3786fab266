"""Loading experiment files and checkpoints of MS-2D-TAN."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tmapdiff._core.arrays import load_tensors
from tmapdiff._core.checks import (
    check_int,
    check_list,
    check_range,
    check_sizes,
    foreign_errors,
    message,
    require,
)
from tmapdiff._core.configs import flatten
from tmapdiff._core.declared_weights import check_declared_bytes
from tmapdiff._core.numbers import parse_number
from tmapdiff.data import (
    FeatureStore,
    GloveVectors,
    HDF5FeatureStore,
    NormalizedFeatureStore,
    Vocabulary,
    load_glove,
)
from tmapdiff.data._reading import reading
from tmapdiff.data.words import PADDING, UNKNOWN
from tmapdiff.errors import CheckpointError, ConfigError, FileError
from tmapdiff.models import MS2DTAN
from tmapdiff.presets import Preset
from tmapdiff.training import TrainingConfig


@dataclass(frozen=True)
class MS2DTANExperiment:
    """An experiment file of MS-2D-TAN, in the terms of this library.

    Attributes:
        preset: Sizes and training settings of MS-2D-TAN and of a diffusion localizer.
        clip_channels: Channels of the video features.
        objective: Objective of MS-2D-TAN, see `tmapdiff.losses.get_objective`.
        dataset: Name of the dataset.
        data_dir: Folder of annotations and features, as written in the file.
        features: Name of the HDF5 file in `data_dir`.
        normalized: Whether features are divided by their L2 norm.
        clip_seconds: Duration of a clip in seconds, or None if clips divide each video equally.
        seconds_per_feature: Seconds between features, or None if they divide each video equally.
        ranks: Values of n in Rank n@m.
        thresholds: Values of m in Rank n@m.
        checkpoint: Path of the weights as written in the file, or None.
    """

    preset: Preset
    clip_channels: int
    objective: str
    dataset: str
    data_dir: Path
    features: str
    normalized: bool
    clip_seconds: float | None
    seconds_per_feature: float | None
    ranks: tuple[int, ...]
    thresholds: tuple[float, ...]
    checkpoint: Path | None

    def build_ms2dtan(self, vocabulary_size: int) -> MS2DTAN:
        """Build the model of the file with random weights.

        Args:
            vocabulary_size: Number of words, including padding and the unknown word.
        """
        return self.preset.build_ms2dtan(
            vocabulary_size=vocabulary_size,
            clip_channels=self.clip_channels,
            objective=self.objective,
        )

    def open_features(self, root: str | os.PathLike[str] = ".") -> FeatureStore:
        """Open the video features.

        Args:
            root: Folder of MS-2D-TAN, which `data_dir` is relative to.

        Raises:
            FileError, FeatureError, MissingDependencyError: As `HDF5FeatureStore`.
        """
        path = Path(root) / self.data_dir / self.features
        store = HDF5FeatureStore(path, self.seconds_per_feature)
        return NormalizedFeatureStore(store) if self.normalized else store


def ms2dtan_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> MS2DTANExperiment:
    """Read an experiment file of MS-2D-TAN, such as `experiments/charades/MS-2D-TAN-G-I3D.yaml`.

    Fields that describe neither model, objective nor data, such as `WORKERS`, are ignored, and so
    are the optimizer and its schedule.

    Args:
        source: Path of the YAML file, or its contents.

    Raises:
        FileError: If the file is missing or cannot be read.
        ConfigError: If it is not YAML, a field is missing, its scales do not form a `MapGrid`, or
            `MS2DTAN` cannot represent its model.
        ArgumentError: If a number is out of range.
        MissingDependencyError: If `source` is a path and the extra `migration` is not installed.

    Source: Zhang et al., arXiv 2012.02646; MS-2D-TAN in github.com/microsoft/VideoX (MIT license).
    """
    if isinstance(source, Mapping):
        fields, name = _Fields("ms2dtan_config", source), "in memory"
    else:
        fields, name = _Fields(str(source), _read_yaml(Path(source))), Path(source).name

    grid, features_per_clip = _read_grid(fields)
    encoder, kernel_sizes, clip_channels = _read_model(fields)
    encoder["features_per_clip"] = features_per_clip
    channels = encoder["channels"]
    clip_seconds = seconds_per_feature = None
    if fields.take("DATASET.SLIDING_WINDOW", False):
        seconds_per_feature = fields.positive("DATASET.TIME_UNIT")
        clip_seconds = seconds_per_feature * features_per_clip
    objective = _read_objective(fields)
    training = TrainingConfig(
        epochs=fields.take("TRAIN.MAX_EPOCH", 20),
        batch_size=fields.take("TRAIN.BATCH_SIZE", 4),
        learning_rate=fields.positive("OPTIM.PARAMS.LR"),
        weight_decay=0.0,  # AdamW without it is Adam
    )
    nms = _number(fields.take("TEST.NMS_THRESH", 0.4))
    checkpoint = fields.take("MODEL.CHECKPOINT", None)
    thresholds = check_list(fields.who, "TEST.TIOU", fields.take("TEST.TIOU", [0.5, 0.7]))
    fields.check_all_used()
    return MS2DTANExperiment(
        preset=Preset(
            description=f"MS-2D-TAN's experiment {name}",
            grid=grid,
            encoder=encoder,
            decoder={"channels": channels, "time_channels": channels, "kernel_sizes": kernel_sizes},
            localizer={"nms_threshold": check_range(fields.who, "TEST.NMS_THRESH", nms, 0, 1)},
            training=training,
        ),
        clip_channels=clip_channels,
        objective=objective,
        dataset=str(fields.take("DATASET.NAME")),
        data_dir=Path(str(fields.take("DATASET.DATA_DIR"))),
        features=f"{fields.take('DATASET.VIS_INPUT_TYPE')}.hdf5",
        normalized=bool(fields.take("DATASET.NORMALIZE", True)),
        clip_seconds=clip_seconds,
        seconds_per_feature=seconds_per_feature,
        ranks=tuple(check_sizes(fields.who, "TEST.RECALL", fields.take("TEST.RECALL", [1, 5]))),
        thresholds=tuple(check_range(fields.who, "TEST.TIOU", one, 0, 1) for one in thresholds),
        checkpoint=Path(str(checkpoint)) if checkpoint else None,
    )


def load_ms2dtan(
    config: str | os.PathLike[str] | Mapping[str, Any] | MS2DTANExperiment,
    checkpoint: str | os.PathLike[str],
    glove: str | os.PathLike[str] | GloveVectors,
    vocabulary: Vocabulary | None = None,
) -> tuple[MS2DTAN, Vocabulary]:
    """Load a checkpoint of the public MS-2D-TAN, ready to localize.

    The checkpoint has no word vectors: they are GloVe's, and zero for unknown words.

    Args:
        config: Experiment file the checkpoint was trained with.
        checkpoint: The weights, `epoch....pkl`. Code in the file is never run.
        glove: The file `glove.6B.300d.txt`, or its vectors.
        vocabulary: Known words. Defaults to all 400,000 of GloVe, which take 480 MB.

    Returns:
        The model, in evaluation mode, and the vocabulary to encode queries with.

    Raises:
        FileError: If a file is missing or cannot be read.
        ConfigError: If its word vectors have another width than GloVe's, or as `ms2dtan_config`.
        ArgumentError: As `ms2dtan_config`.
        CheckpointError: If the file has no weights, or those of another model.
    """
    who = "load_ms2dtan"
    experiment = config if isinstance(config, MS2DTANExperiment) else ms2dtan_config(config)
    weights = _read_weights(who, Path(checkpoint))
    if not isinstance(glove, GloveVectors):
        glove = load_glove(glove, None if vocabulary is None else vocabulary.words)
    if vocabulary is None:
        words = dict.fromkeys(glove.words)  # some files repeat words
        vocabulary = Vocabulary(word for word in words if word not in (PADDING, UNKNOWN))
    word_channels = experiment.preset.encoder["word_channels"]
    if glove.vectors.shape[1] != word_channels:
        expected = f"word vectors of {word_channels} numbers"
        raise ConfigError(message(who, expected, glove.vectors.shape[1]))
    held = sum(tensor.nbytes for tensor in [*weights.values(), glove.vectors])
    check_declared_bytes(who, held, lambda: experiment.build_ms2dtan(len(vocabulary)))
    model = experiment.build_ms2dtan(len(vocabulary))
    model.load_public_state_dict(weights)
    model.encoder.load_word_vectors(glove.rows_for(vocabulary, missing="zero")[0])
    return model.eval(), vocabulary


_MISSING = object()

_CLIP = "MODEL.CLIP_MODULE.PARAMS"
_FUSION = "MODEL.FUSION_MODULE.PARAMS"
_MAP = "MODEL.MAP_MODULE.PARAMS"
_LAYERS = "MODEL.PROP_MODULE.PARAMS.NUM_LAYERS"
_MAP_LAYERS = {"MultiScalePropConvTanhBN": "conv", "MultiScalePropMaxPool": "max-pool"}
_LONGEST_FILE = 1 << 20  # bytes of an experiment file; those of MS-2D-TAN have about 2,000


class _Fields:
    """Fields of an experiment file by dotted name."""

    def __init__(self, who: str, content: Mapping[str, Any]) -> None:
        self.who = who
        self._values = dict(flatten(content))

    def take(self, name: str, default: Any = _MISSING) -> Any:
        value = self._values.pop(name, default)
        if value is _MISSING:
            raise ConfigError(message(self.who, f"the field {name}", "none"))
        return value

    def size(self, name: str, default: Any = _MISSING) -> int:
        return check_int(self.who, name, self.take(name, default), at_least=1)

    def positive(self, name: str) -> float:
        return check_range(self.who, name, _number(self.take(name)), 0, open_low=True)

    def expect(self, name: str, *supported: Any) -> Any:
        """Take a field that must have a supported value; if there is only one, it may lack."""
        value = self.take(name, supported[0] if len(supported) == 1 else _MISSING)
        if value not in supported:
            expected = f"{name} to be {' or '.join(map(repr, supported))}"
            raise ConfigError(message(self.who, expected, repr(value)))
        return value

    def check_all_used(self) -> None:
        """Raise ConfigError for a field of the model that was not taken, as it would change it."""
        for name in self._values:
            if name.startswith("MODEL."):
                raise ConfigError(message(self.who, "a model that MS2DTAN supports", name))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    yaml: Any = require("yaml", extra="migration", purpose="ms2dtan_config")
    with reading(path), path.open("rb") as file:
        text = file.read(_LONGEST_FILE + 1)
    if len(text) > _LONGEST_FILE:
        expected = f"an experiment file of at most {_LONGEST_FILE:,} bytes"
        raise ConfigError(message(str(path), expected, "more"))
    with foreign_errors(ConfigError, f"{path} is not YAML"):
        # Nested aliases can expand to more than fits in memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError(message(str(path), "YAML without aliases", "an alias"))
        content = yaml.safe_load(text)
    if not isinstance(content, Mapping):
        raise ConfigError(message(str(path), "fields of an experiment", type(content).__name__))
    return content


def _read_grid(fields: _Fields) -> tuple[dict[str, int], int]:
    """Return the fields of `MapGrid`, and the features per clip."""
    who = fields.who
    sizes = {}
    for name in ("DATASET.OUTPUT_NUM_CLIPS", "DATASET.NUM_ANCHORS", _LAYERS):
        value = fields.take(name)
        sizes[name] = check_sizes(who, name, [value] if isinstance(value, int) else value)
    scales = fields.size("MODEL.PARAMS.NUM_SCALES")
    num_clips, num_anchors, _ = (value[0] for value in sizes.values())
    # Coarse scales take half of their durations from the scale before.
    halves = [num_clips // 2**scale for scale in range(scales)]
    layers = [num_anchors] + [num_anchors // 2] * (scales - 1)
    expected_sizes = (halves, [num_anchors] * scales, layers)
    for (name, found), wanted in zip(sizes.items(), expected_sizes, strict=True):
        if found != wanted:
            raise ConfigError(message(who, f"{name} to be {wanted}", found))
    inputs = fields.take("DATASET.INPUT_NUM_CLIPS")
    stride = fields.size(f"{_CLIP}.STRIDE", 1)
    if inputs != num_clips * stride:
        expected = f"DATASET.INPUT_NUM_CLIPS to be {num_clips} clips of {stride} features"
        raise ConfigError(message(who, expected, inputs))
    fields.expect(f"{_CLIP}.KERNEL_SIZE", stride)  # a clip is the mean of its own features
    return {"num_clips": num_clips, "num_anchors": num_anchors, "num_scales": scales}, stride


def _read_model(fields: _Fields) -> tuple[dict[str, Any], list[int], int]:
    """Return the fields of `MultimodalEncoder`, the kernel sizes, and the channels of a clip."""
    who = fields.who
    channels = fields.size(f"{_CLIP}.HIDDEN_SIZE")
    kernel_sizes = check_sizes(who, f"{_MAP}.KERNEL_SIZES", fields.take(f"{_MAP}.KERNEL_SIZES"))
    layers = len(kernel_sizes)
    for name, supported in {
        "MODEL.NAME": "MultiScale_TAN",
        "MODEL.CLIP_MODULE.NAME": "ClipAvgPool",
        "MODEL.PROP_MODULE.PARAMS.HIDDEN_SIZE": channels,
        "MODEL.FUSION_MODULE.NAME": "MulNormFusion",
        f"{_FUSION}.HIDDEN_SIZE": channels,
        f"{_FUSION}.VIS_INPUT_SIZE": channels,
        f"{_FUSION}.TXT_HIDDEN_SIZE": channels,
        f"{_FUSION}.TXT_ENCODER.NAME": "LSTM",
        f"{_FUSION}.TXT_ENCODER.BIDIRECTIONAL": True,
        "MODEL.MAP_MODULE.NAME": "MapGatedConv",
        f"{_MAP}.INPUT_SIZE": channels,
        f"{_MAP}.HIDDEN_SIZES": [channels] * layers,
        f"{_MAP}.STRIDES": [1] * layers,
        f"{_MAP}.PADDINGS": [kernel // 2 for kernel in kernel_sizes],
        f"{_MAP}.DILATIONS": [1] * layers,
        "MODEL.PRED_MODULE.NAME": "ProposalHead",
        "MODEL.PRED_MODULE.PARAMS.INPUT_SIZE": channels,
        "DATASET.TXT_INPUT_TYPE": "glove",
    }.items():
        fields.expect(name, supported)
    map_layer = fields.expect("MODEL.PROP_MODULE.NAME", *_MAP_LAYERS)
    encoder = {
        "channels": channels,
        "word_channels": fields.size(f"{_FUSION}.TXT_INPUT_SIZE"),
        "num_text_layers": fields.size(f"{_FUSION}.TXT_ENCODER.NUM_LAYERS"),
        "train_words": False,
        "map_layer": _MAP_LAYERS[map_layer],
    }
    return encoder, kernel_sizes, fields.size(f"{_CLIP}.INPUT_SIZE")


def _read_objective(fields: _Fields) -> str:
    for name, own in (("LOSS.NAME", "bce_rescale_loss"), ("LOSS.PARAMS.BIAS", 0)):
        if (value := fields.take(name, own)) != own:
            text = f"{name} = {value!r} has no counterpart; training here has {own!r}."
            warnings.warn(f"{fields.who}: {text}", stacklevel=3)
    low, high = fields.take("LOSS.PARAMS.MIN_IOU", 0.5), fields.take("LOSS.PARAMS.MAX_IOU", 1)
    if (low, high) == (0, 1):
        return "bce-full"
    if (low, high) != (0.5, 1):
        text = f"training here rescales the IoU from [0.5, 1], and not from [{low}, {high}]."
        warnings.warn(f"{fields.who}: {text}", stacklevel=3)
    return "bce-rescaled"


def _number(value: Any) -> Any:
    """Parse numbers such as 1e-4, which YAML reads as text because they have no point."""
    number = parse_number(value) if isinstance(value, str) and "e" in value.lower() else None
    return value if number is None else number


def _read_weights(who: str, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileError(message(who, f"a file {path}", "no such file"))
    weights = load_tensors(path)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise CheckpointError(message(who, f"weights by name in {path}", type(weights).__name__))
    return weights
