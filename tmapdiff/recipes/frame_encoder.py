"""The frame encoder that made the features of a store, for pipelines that take videos."""

import json
import os
from dataclasses import dataclass
from typing import Any

from tmapdiff._core.checks import message
from tmapdiff.data import FeatureStore
from tmapdiff.errors import FeatureError, TmapdiffError
from tmapdiff.video import FrameEncoder, load_frame_encoder


@dataclass(frozen=True)
class EncoderMatch:
    """What is known of the frame encoder of a feature store.

    Attributes:
        encoder: The encoder; None if it could not be had.
        fps: Features per second; None without an encoder.
        remark: What to tell a user, in one line.
    """

    encoder: FrameEncoder | None
    fps: float | None
    remark: str


def find_frame_encoder(
    store: FeatureStore, folder: str | os.PathLike[str] | None = None
) -> EncoderMatch:
    """Find the frame encoder that made the features of a store.

    It is made anew from the store's attributes, as `extract_features` writes them, and counts if it
    is the same, weights and all.

    Args:
        store: The feature store.
        folder: Folder of a saved encoder, to take in place of the store's attributes; must be the
            one that made the features, if these name one.

    Raises:
        CheckpointError: If there is no encoder in `folder`.
        FeatureError: If that in `folder` is another one, or the store's rate is not known, or it
            leaves out what it says of the encoder.
    """
    attributes: dict[str, Any] = getattr(store, "attributes", {})
    rate = store.seconds_per_feature
    left_out = getattr(store, "left_out", ())
    mend = "leaves out which frame encoder made its features: tmapdiff convert makes one that says"
    if folder is not None:
        encoder = load_frame_encoder(folder)
        who = "find_frame_encoder"
        if "model_sha256" in left_out:
            raise FeatureError(f"{who}: {store.description} {mend}.")
        if attributes.get("model_sha256") not in (None, encoder.fingerprint):
            expected = f"the encoder that made {store.description}, {attributes.get('model')}"
            got = f"another one in {folder}, {encoder.description}"
            raise FeatureError(message(who, expected, got))
        if rate is None:
            expected = f"the rate of {store.description}, for a pipeline that takes videos"
            raise FeatureError(message(who, expected, "none", "Give its seconds_per_feature."))
        return EncoderMatch(encoder, 1 / rate, f"frame encoder: {encoder.description}")
    try:
        if {"frame_encoder", "model_sha256"} & {*left_out}:
            raise FeatureError(f"the store {mend}")
        if "frame_encoder" not in attributes or rate is None:
            raise FeatureError("the store does not say which frame encoder made its features")
        encoder = _make_anew(json.loads(attributes["frame_encoder"]))
        if encoder.fingerprint != attributes.get("model_sha256"):
            made = f"{encoder.description} made anew"
            raise FeatureError(f"{made} is not the one that made the features")
    # Whatever a file may say; and there may be no network.
    except (TmapdiffError, TypeError, ValueError, AttributeError) as error:
        return EncoderMatch(None, None, f"the pipeline takes features, not videos: {error}")
    fps = attributes.get("fps", 1 / rate)
    return EncoderMatch(encoder, fps, f"frame encoder: {encoder.description}")


def _make_anew(arguments: dict[str, Any]) -> FrameEncoder:
    """Make an encoder from the attributes of an untrusted file."""
    name, weights = str(arguments.get("model_name")), arguments.get("weights")
    if ":" in name:
        raise FeatureError(
            f"the store names {name}, which may be anyone's: save the encoder and name its folder"
        )
    if weights is not None and not str(weights).endswith(".safetensors"):
        raise FeatureError(f"the weights {weights} are no safetensors: save the encoder")
    if not arguments.get("pretrained"):
        raise FeatureError("its frame encoder has random weights, which cannot be made anew")
    return FrameEncoder(**arguments)
