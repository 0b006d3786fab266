"""Image features of any timm model."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from typing_extensions import Self

from tmapdiff._core.checks import (
    check_bool,
    check_choice,
    check_int,
    check_shape,
    first_line,
    message,
)
from tmapdiff._core.declared_weights import check_declared_weights
from tmapdiff._core.digests import add_tensors
from tmapdiff._core.files import written_beside
from tmapdiff.data._reading import json_or_none
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError

Precision = Literal["no", "fp16", "bf16"]
_FORMAT = "tmapdiff frame encoder 1"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class FrameEncoder(nn.Module):
    """Computes one vector per image with timm's preprocessing and a frozen model without its head.

    `vgg16` returns 4096 features (fc7), `vit_base_patch16_clip_224.openai` CLIP's 768 or, with
    `keep_head`, the 512 of the space shared with CLIP's text tower.

    Args:
        model_name: Name of the model, with or without the tag of its weights
            (`timm.list_models()`, `timm.list_pretrained()`).
        pretrained: Load weights from timm's cache or the hub; otherwise they are random.
        weights: File of weights to use instead of the hub's.
        keep_head: Keep the last layer: class scores or, for CLIP, the projection.
        mixed_precision: Precision of autocast. Features are always float32.
        device: Where to compute.

    Attributes:
        arguments: The arguments it was made with, except `device`; None if loaded from a folder.

    Shape:
        - frames: (B, 3, height, width), as returned by `preprocess`
        - returns: (B, feature_dim) float32, on the device of the frames

    Raises:
        ConfigError: If the model or precision is unknown, or the model does not return one vector
            per image.
        CheckpointError: If the weights cannot be loaded, for example without a network.
        FileError: If the file `weights` does not exist.
        ArgumentError: If there are `weights` but `pretrained` is False, or a flag is not a bool.
        ShapeError: In the call, if the frames have another shape.

    Example:
        >>> encoder = FrameEncoder("vgg16", device="cuda", mixed_precision="fp16")  # doctest: +SKIP
        >>> encoder.encode(images).shape  # doctest: +SKIP
        torch.Size([26, 4096])
    """

    arguments: dict[str, Any] | None = None

    def __init__(
        self,
        model_name: str,
        *,
        pretrained: bool = True,
        weights: str | os.PathLike[str] | None = None,
        keep_head: bool = False,
        mixed_precision: Precision = "no",
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        import timm

        who = "FrameEncoder"
        check_choice(who, "mixed_precision", mixed_precision, get_args(Precision))
        _check_name(who, model_name)
        check_bool(who, "pretrained", pretrained)
        check_bool(who, "keep_head", keep_head)
        options: dict[str, Any] = {} if keep_head else {"num_classes": 0}
        if weights is not None:
            if not pretrained:
                raise ArgumentError(message(who, "pretrained with weights", "pretrained=False"))
            if not Path(weights).is_file():
                raise FileError(message(who, f"a file {weights}", "no such file"))
            options["pretrained_cfg_overlay"] = {"file": str(weights)}
        try:
            model = timm.create_model(model_name, pretrained=pretrained, **options)
        # The hub, timm and torch raise errors of many types.
        except Exception as error:
            if not pretrained:
                raise
            raise CheckpointError(
                f"{who}: cannot load the weights of {model_name}: {first_line(error)}. "
                "Without a network, pass the file as weights, or pretrained=False."
            ) from error
        origin = "" if pretrained else ", random weights"
        self.arguments = {
            "model_name": model_name,
            "pretrained": pretrained,
            "weights": None if weights is None else str(Path(weights).absolute()),
            "keep_head": keep_head,
            "mixed_precision": mixed_precision,
        }
        self.model_name, self.mixed_precision = model_name, mixed_precision
        self.description = f"timm {model_name}{' with head' if keep_head else ''}{origin}"
        config = timm.data.resolve_model_data_config(model)
        self._set_up(model.to(device), FramePreprocessor(config))

    def _set_up(self, model: Any, preprocess: "FramePreprocessor") -> None:
        self.model = model.eval().requires_grad_(False)
        self.preprocess = preprocess
        with torch.no_grad():
            frame = preprocess(np.zeros((9, 16, 3), np.uint8))
            example = self._vectors(frame[None].to(self.device, self.dtype))
        if not isinstance(example, Tensor) or example.dim() != 2:
            got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            expected = "a model that returns (B, D)"
            raise ConfigError(message(type(self).__name__, expected, f"{got} of {self.model_name}"))
        self.feature_dim: int = example.shape[1]

    def _vectors(self, frames: Tensor) -> Tensor:
        vectors: Tensor = self.model(frames)
        return vectors

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `save_directory`, whose other files stay.

        Raises:
            FileError: If the folder cannot be written, which leaves it unchanged.
        """
        name = self.model_name
        if ":" in name:  # loading would look it up on the hub
            name = self.model.pretrained_cfg["architecture"]
        config = {
            "format": _FORMAT,
            "architecture": name,
            "model_name": self.model_name,
            "num_classes": self.model.num_classes,
            "mixed_precision": self.mixed_precision,
            "description": self.description,
            "preprocessing": self.preprocess.config,
        }
        with written_beside(save_directory) as folder:
            folder.mkdir()
            (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            save_model(self.model, str(folder / _WEIGHTS))

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu"
    ) -> Self:
        """Load an encoder that `save_pretrained` wrote into `folder` onto a `device`.

        Raises:
            CheckpointError: If the encoder is missing or damaged, or its weights do not fit.
        """
        import timm

        place = f"{cls.__name__}: cannot load {folder}"
        try:
            config = json_or_none(Path(folder) / _CONFIG)
            if not isinstance(config, dict) or config.get("format") != _FORMAT:
                raise CheckpointError(f"{place}: {_CONFIG} is not of the format {_FORMAT!r}.")
            # JSON turns tuples into lists, which would change the fingerprint.
            preprocessing = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in config["preprocessing"].items()
            }
            _check_preprocessing(place, preprocessing)
            architecture, classes = config["architecture"], config["num_classes"]
            _check_name(cls.__name__, architecture)
            if ":" in architecture:
                raise CheckpointError(f"{place}: {architecture} is not an architecture of timm.")
            build = partial(timm.create_model, architecture, pretrained=False, num_classes=classes)
            check_declared_weights(place, Path(folder), build)
            model = build()
            missing, unexpected = load_model(model, str(Path(folder) / _WEIGHTS), strict=False)
            if missing or unexpected:
                what = "no" if missing else "unknown"
                names = ", ".join(sorted(missing or unexpected)[:3])
                raise CheckpointError(f"{place}: it has {what} weights {names}.")
            encoder = cls.__new__(cls)
            nn.Module.__init__(encoder)
            encoder.model_name = str(config["model_name"])
            encoder.description = str(config["description"])
            encoder.mixed_precision = check_choice(
                cls.__name__, "mixed_precision", config["mixed_precision"], get_args(Precision)
            )
            encoder._set_up(model.to(device), FramePreprocessor(preprocessing))
        except CheckpointError:
            raise
        # JSON, safetensors, timm and torch raise errors of many types.
        except Exception as error:
            raise CheckpointError(f"{place}: {first_line(error)}.") from error
        return encoder

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever `mode` is, as the model is frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.model.parameters()).dtype

    @cached_property
    def fingerprint(self) -> str:
        """Digest of preprocessing, precision and the weights as they are on first access."""
        digest = hashlib.sha256(f"{self.preprocess}{self.mixed_precision}".encode())
        add_tensors(digest, self.model.state_dict().items())
        return digest.hexdigest()

    def extra_repr(self) -> str:
        """Name the model, as timm's representation does not."""
        return self.description

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Encode preprocessed `frames`; see the class."""
        channels, height, width = self.preprocess.input_size
        check_shape(type(self).__name__, "frames", frames, f"B {channels} {height} {width}")
        if not len(frames):
            return frames.new_zeros(0, self.feature_dim, dtype=torch.float32)
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.mixed_precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            features = self._vectors(frames.to(self.device, self.dtype))
        return features.float().to(frames.device)

    def encode(self, images: Iterable[np.ndarray], batch_size: int = 32) -> Tensor:
        """Preprocess and encode images in batches.

        Args:
            images: RGB images of any size.
            batch_size: Images per batch.

        Shape:
            - images: each (height, width, 3) uint8
            - returns: (T, feature_dim) float32, on the CPU

        Raises:
            ArgumentError: If an image has another shape or dtype, or `batch_size` is below 1.
        """
        check_int(f"{type(self).__name__}.encode", "batch_size", batch_size, at_least=1)
        frames = (self.preprocess(image) for image in images)
        parts = [self(torch.stack(batch)) for batch in batches(frames, batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0, self.feature_dim)


class FramePreprocessor:
    """Turns an image into a model's input with timm's evaluation transform.

    Args:
        config: Returned by `timm.data.resolve_model_data_config`.

    Shape:
        - image: (height, width, 3) uint8, RGB
        - returns: (3, height, width) float32

    Raises:
        ArgumentError: In the call, if an image has another shape or dtype.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from timm.data import create_transform

        self.config = config
        self.input_size: tuple[int, int, int] = config["input_size"]
        self._transform = create_transform(**config, is_training=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def __call__(self, image: np.ndarray) -> Tensor:
        """Preprocess an image; see the class."""
        from PIL import Image

        check_image("FramePreprocessor", image)
        frame: Tensor = self._transform(Image.fromarray(image))
        return frame


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Split a stream into lists of `size`; the last may be shorter."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch


def check_image(who: str, image: Any) -> None:
    """Raise ArgumentError unless `image` is RGB with 8 bits."""
    shape, dtype = getattr(image, "shape", type(image).__name__), getattr(image, "dtype", "")
    is_image = isinstance(image, np.ndarray) and dtype == np.uint8
    if not is_image or len(shape) != 3 or shape[2] != 3:
        expected = "an image of shape (H, W, 3) and dtype uint8"
        raise ArgumentError(message(who, expected, f"{shape} {dtype}".rstrip()))


def _check_name(who: str, name: str) -> None:
    import timm

    expected = "the name of a timm model"
    if not isinstance(name, str):
        raise ConfigError(message(who, expected, repr(name)))
    if ":" in name:  # hf-hub:..., local-dir:...
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ConfigError(message(who, expected, repr(name), "See timm.list_models()."))
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        hint = f"Known: {', '.join(known[:5])}." if known else "The model has no weights."
        raise ConfigError(message(who, "a tag of the model's weights", repr(name), hint))


def _check_preprocessing(place: str, config: dict[str, Any]) -> None:
    """Refuse settings beyond those of timm's models, such as sizes that would fill the memory."""
    channels, *sides = config["input_size"]
    is_known = set(config) <= _PREPROCESSING and channels == 3 and len(sides) == 2
    is_known = is_known and all(isinstance(side, int) for side in sides)
    crop = config.get("crop_pct", 1.0)
    if not is_known or not has_small_numbers(config) or not crop >= _SMALLEST_CROP:
        raise CheckpointError(f"{place}: the preprocessing in {_CONFIG} is not one of timm's.")


def other_encoder(encoder: Any, store: Any) -> str:
    """Say whether a feature store names another frame encoder; empty if not, or if unknown."""
    attributes = getattr(store, "attributes", {})
    made_by = attributes.get("model_sha256")
    if encoder is None or made_by is None:
        return ""
    # Weights that were converted before their first digest cannot be compared.
    is_known = "fingerprint" in vars(encoder) or encoder.dtype == torch.float32
    if not is_known or made_by == encoder.fingerprint:
        return ""
    other = f"the store {attributes.get('model')} with other weights or settings"
    return f"the pipeline uses {encoder.description}, {other}"


def has_small_numbers(config: Any) -> bool:
    """Return whether no number in a configuration exceeds any size that models have."""
    if isinstance(config, Mapping):
        config = list(config.values())
    if isinstance(config, list | tuple):
        return all(map(has_small_numbers, config))
    return not isinstance(config, int | float) or abs(config) <= _LARGEST_SIDE


_PREPROCESSING = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
_LARGEST_SIDE = 2048  # twice the largest input of timm's models
_SMALLEST_CROP = 0.25  # images are enlarged by its inverse before cropping
