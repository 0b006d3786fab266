"""Saved pipelines: their folders and parts."""

import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from tmapdiff._core.checks import first_line, foreign_errors, message, short, shown
from tmapdiff._core.limits import JSON_GROWTH, read_at_most
from tmapdiff.data.words import Vocabulary
from tmapdiff.errors import ArgumentError, CheckpointError
from tmapdiff.models import (
    MS2DTAN,
    MomentLocalizer,
    SimilarityLocalizer,
    TransformersTextEncoder,
)
from tmapdiff.models._base import MODEL_FILES
from tmapdiff.models.transformers_text import TEXT_ENCODER_FILES
from tmapdiff.video import FrameEncoder, TransformersFrameEncoder
from tmapdiff.video.two_towers import FRAME_ENCODER_FILES

# The parts, and the classes that each may have.
PARTS: Mapping[str, tuple[type, ...]] = {
    "localizer": (MomentLocalizer, MS2DTAN, SimilarityLocalizer),
    "vocabulary": (Vocabulary,),
    "frame_encoder": (FrameEncoder, TransformersFrameEncoder),
    "text_encoder": (TransformersTextEncoder,),
}
SETTINGS = ("fps", "clip_seconds", "durations", "text_features")
VOCABULARY = "vocabulary.json"
PIPELINE_FILES = {
    "": re.compile(r"model_index\.json"),
    "localizer": MODEL_FILES,
    "vocabulary": re.compile(r"vocabulary\.json"),
    "frame_encoder": FRAME_ENCODER_FILES,
    "text_encoder": TEXT_ENCODER_FILES,
}


def find_folder(place: str, name: str | PathLike[str], options: dict[str, Any]) -> Path:
    folder = Path(name)
    if folder.is_dir():
        if options:
            raise ArgumentError(f"{place}: unknown argument {', '.join(sorted(options))}.")
        return folder
    text = str(name)
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        # It cannot be a name on the hub.
        raise CheckpointError(f"{place}: there is no such folder.")
    from huggingface_hub import snapshot_download

    patterns = [DiffusionPipeline.config_name, *(f"{part}/*" for part in PARTS)]
    try:
        return Path(snapshot_download(text, allow_patterns=patterns, **options))
    # The hub's client raises many kinds of errors.
    except Exception as error:
        reason = f"there is no such folder here, and the hub failed: {first_line(error)}."
        raise CheckpointError(f"{place}: {reason}") from error


def read_index(place: str, path: Path, class_name: str) -> dict[str, Any]:
    with foreign_errors(CheckpointError, f"{place}: {path.name}"), path.open("rb") as file:
        index = json.loads(read_at_most(str(path), file, JSON_GROWTH))
    if not isinstance(index, dict):
        raise CheckpointError(f"{place}: {path.name} is not a JSON object.")
    if index.get("_class_name") != class_name:
        raise CheckpointError(f"{place}: it is a {short(str(index.get('_class_name')))}.")
    return index


def load_part(place: str, folder: Path, name: str, entry: Any) -> Any:
    """Load a part; only this library's classes are allowed."""
    if entry is None or entry == [None, None]:
        return None
    kinds: dict[str, Any] = {kind.__name__: kind for kind in PARTS[name]}
    named = [kind for kind in kinds if entry == ["tmapdiff", kind]]
    if not named:
        expected = f"its {name} to be a {' or '.join(kinds)} of tmapdiff"
        raise CheckpointError(message(place, expected, shown(entry)))
    if name == "vocabulary":
        return Vocabulary.load(folder / name / VOCABULARY)
    if name == "text_encoder":
        return TransformersTextEncoder(str(folder / name))
    return kinds[named[0]].from_pretrained(folder / name)
