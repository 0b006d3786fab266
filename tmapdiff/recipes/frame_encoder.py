"""The frame encoder that made the features of a store, for pipelines that take videos."""

import json
import os
from dataclasses import dataclass
from typing import Any

from tmapdiff.data import FeatureStore
from tmapdiff.errors import FeatureError, TmapdiffError
from tmapdiff.video import FrameEncoder


@dataclass(frozen=True)
class FoundEncoder:
    """What is known of the frame encoder of a feature store.

    Attributes:
        encoder: The encoder; None if it could not be had.
        fps: Features a second; None without an encoder.
        remark: What to tell a user, in a line.
    """

    encoder: FrameEncoder | None
    fps: float | None
    remark: str


def find_frame_encoder(
    store: FeatureStore, folder: str | os.PathLike[str] | None = None
) -> FoundEncoder:
    """Find the frame encoder that made the features of a store.

    It is made anew of what the store says, as `extract_features` writes it, and counts if it is the
    same, weights and all.

    Args:
        store: The feature store.
        folder: Folder of a saved encoder, to take in place of what the store says; must be the one
            that made the features, if the store says which that was.

    Raises:
        CheckpointError: If there is no encoder in `folder`.
        FeatureError: If that in `folder` is another one, or the store's rate is not known.
    """
    said: dict[str, Any] = getattr(store, "attributes", {})
    rate = store.seconds_per_feature
    if folder is not None:
        encoder = FrameEncoder.from_pretrained(folder)
        if said.get("model_sha256") not in (None, encoder.fingerprint):
            raise FeatureError(
                f"find_frame_encoder: expected the encoder that made {store.description}, "
                f"{said.get('model')}, got another one in {folder}, {encoder.description}."
            )
        if rate is None:
            raise FeatureError(
                f"find_frame_encoder: expected the rate of {store.description}, for a pipeline "
                "that takes videos, got none. Give its seconds_per_feature."
            )
        return FoundEncoder(encoder, 1 / rate, f"frame encoder: {encoder.description}")
    without = "the pipeline takes features, not videos:"
    if "frame_encoder" not in said or rate is None:
        reason = "the store does not say which frame encoder made its features"
        return FoundEncoder(None, None, f"{without} {reason}")
    try:
        encoder = _made_anew(json.loads(said["frame_encoder"]))
    # Whatever a file may say; and there may be no network.
    except (TmapdiffError, TypeError, ValueError, AttributeError) as error:
        return FoundEncoder(None, None, f"{without} {error}")
    if encoder.fingerprint != said.get("model_sha256"):
        reason = f"{encoder.description} made anew is not the one that made the features"
        return FoundEncoder(None, None, f"{without} {reason}")
    return FoundEncoder(encoder, said.get("fps", 1 / rate), f"frame encoder: {encoder.description}")


def _made_anew(arguments: dict[str, Any]) -> FrameEncoder:
    """Make an encoder of what a file says; the file may be a stranger's."""
    name, weights = str(arguments.get("model_name")), arguments.get("weights")
    if ":" in name:
        raise FeatureError(f"the store says {name}, which may be anyone's: save the encoder")
    if weights is not None and not str(weights).endswith(".safetensors"):
        raise FeatureError(f"the weights {weights} are no safetensors: save the encoder")
    if not arguments.get("pretrained"):
        raise FeatureError("its frame encoder has random weights, which cannot be made anew")
    return FrameEncoder(**arguments)
