"""Image features in the space of sentences, from two-tower models of transformers."""

import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from tmapdiff._core.checks import check_choice, foreign_errors, message, require, short, shown
from tmapdiff._core.files import written_beside
from tmapdiff._core.transformers_models import load_beside, load_model
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError
from tmapdiff.video.frame_encoder import (
    FrameEncoder,
    FramePreprocessor,
    Precision,
    check_image,
    has_small_numbers,
)

HF = "hf:"  # prefix of names of transformers models; names without it are timm's
# Files that `save_pretrained` of both classes may write.
FRAME_ENCODER_FILES = re.compile(
    r"(generation_|preprocessor_|processor_)?config\.json|model[\w.-]*\.(safetensors|json)"
)
# Class of the image tower, by the model type in the configuration.
_IMAGE_MODELS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
}
_SAVED = "tmapdiff"  # field of the model's configuration with our settings


class TransformersFrameEncoder(FrameEncoder):
    """A `FrameEncoder` that returns unit vectors in the space of the model's sentence embeddings.

    Uses the image tower of CLIP, SigLIP, or another model of transformers with
    `get_image_features`. `TransformersTextEncoder` of the same model embeds sentences.

    Args:
        model: Folder, name on the hub, or a model of transformers.
        image_processor: Folder, name, or image processor of transformers. Defaults to the one of
            the folder or name in `model`.
        mixed_precision: Precision of autocast. Defaults to the saved one or `no`. Features are
            always float32.
        device: Where to compute.

    Raises:
        MissingDependencyError: If transformers is not installed.
        CheckpointError: If model or processor cannot be loaded, for example without a network.
        SizeLimitError: If a text file in the folder exceeds the memory limit.
        ArgumentError: If `model` is an object and `image_processor` is missing.
        ConfigError: If the model does not embed images and texts in one space or the image size
            varies, or the precision is unknown.
        ShapeError: In the call, if the frames have another shape.

    Example:
        >>> encoder = TransformersFrameEncoder("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> encoder.encode(images).shape  # doctest: +SKIP
        torch.Size([26, 512])
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any = None,
        *,
        mixed_precision: Precision | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        nn.Module.__init__(self)
        who = type(self).__name__
        require("transformers", extra="text", purpose=who)
        if image_processor is None:
            if not isinstance(model, str | os.PathLike):
                raise ArgumentError(message(who, "an image_processor for the model", "none"))
            image_processor = model
        name: str = type(model).__name__
        saved: Any = {}
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            model = load_model(who, name, _IMAGE_MODELS)
            saved = getattr(model.config, _SAVED, {})
            if not os.path.isdir(name):
                self.arguments = {"model_name": f"{HF}{name}"}
        if isinstance(image_processor, str | os.PathLike):
            place = os.fspath(image_processor)
            image_processor = load_beside(who, place, "image processor", "AutoImageProcessor")
        if not isinstance(saved, dict):
            raise CheckpointError(message(who, f"{_SAVED} of {name} to be an object", shown(saved)))
        self.model_name = name
        self.description = short(str(saved.get("description", f"transformers {name}")))
        precision = mixed_precision or saved.get("mixed_precision", "no")
        self.mixed_precision = check_choice(who, "mixed_precision", precision, get_args(Precision))
        with foreign_errors(CheckpointError, f"{who}: cannot encode with {name}"):
            preprocess = TransformersPreprocessor(who, image_processor)
            self._set_up(model.to(device), preprocess)
        self._processor = preprocess.processor

    @override
    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        saved = {"description": self.description, "mixed_precision": self.mixed_precision}
        setattr(self.model.config, _SAVED, saved)
        with written_beside(save_directory, replaces={"": FRAME_ENCODER_FILES}) as folder:
            self.model.save_pretrained(folder)
            self._processor.save_pretrained(folder)

    @classmethod
    @override
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu"
    ) -> Self:
        return cls(os.fspath(folder), device=device)

    @override
    def _vectors(self, frames: Tensor) -> Tensor:
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=frames)
        elif self.model.config.model_type in _IMAGE_MODELS:
            found = self.model(pixel_values=frames)
        else:
            expected = "a model that embeds images and texts in one space"
            raise ConfigError(message(type(self).__name__, expected, self.description))
        if not isinstance(found, Tensor):  # from a tower, or since transformers 5
            pooled = getattr(found, "image_embeds", None)
            found = found.pooler_output if pooled is None else pooled
        # In float32, as squares overflow in half precision.
        return nn.functional.normalize(found.float(), dim=-1)


def load_frame_encoder(
    folder: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> FrameEncoder:
    """Load a frame encoder of either class, which wrote itself into `folder`, onto a `device`.

    Raises:
        CheckpointError: If the encoder is missing or damaged, or its weights do not fit.
        MissingDependencyError, ConfigError: As `TransformersFrameEncoder`.
    """
    has_processor = (Path(folder) / "preprocessor_config.json").is_file()
    kind = TransformersFrameEncoder if has_processor else FrameEncoder
    return kind.from_pretrained(folder, device=device)


class TransformersPreprocessor(FramePreprocessor):
    """Turns an image into a model's input with an image processor of transformers."""

    def __init__(self, who: str, processor: Any) -> None:
        self.processor = processor
        stated = json.loads(processor.to_json_string())
        self.config = {name: stated.get(name) for name in _PROCESSING}
        if not has_small_numbers(stated):
            expected = "an image processor without huge numbers"
            raise CheckpointError(message(who, expected, shown(self.config)))
        wide, high = (self(np.zeros(size, np.uint8)) for size in ((9, 16, 3), (16, 9, 3)))
        if wide.shape != high.shape or wide.dim() != 3:
            expected = "an image processor with a fixed output size"
            got = f"{tuple(wide.shape)} and {tuple(high.shape)}"
            hint = "For SigLIP 2, use a fixed size: google/siglip2-base-patch16-224."
            raise ConfigError(message(who, expected, got, hint))
        self.input_size = tuple(wide.shape)  # type: ignore[assignment]

    @override
    def __call__(self, image: np.ndarray) -> Tensor:
        check_image("TransformersFrameEncoder", image)
        # Stated, as a height of 3 could be mistaken for channels.
        made = self.processor(images=image, return_tensors="pt", input_data_format="channels_last")
        frame: Tensor = made["pixel_values"][0]
        return frame


# Settings of transformers that determine the pixels.
_PROCESSING = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb"),
)
