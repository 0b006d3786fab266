"""The frame encoder of a feature store, for pipelines that take videos."""

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
    """Result of the search for a feature store's frame encoder.

    Attributes:
        encoder: The encoder; None if it could not be found.
        fps: Features per second; None without an encoder.
        remark: A line for the user.
    """

    encoder: FrameEncoder | None
    fps: float | None
    remark: str


def find_frame_encoder(
    store: FeatureStore, folder: str | os.PathLike[str] | None = None
) -> EncoderMatch:
    """Find the frame encoder that made the features of a store.

    It is rebuilt from the store's attributes, as written by `extract_features`, and used only if
    its weights are the same.

    Args:
        store: The feature store.
        folder: Folder of a saved encoder to use instead. If the store records its encoder, it must
            be the same.

    Raises:
        CheckpointError: If there is no encoder in `folder`.
        FeatureError: If `folder` holds another encoder or one of other channels, or the store lacks
            its rate or part of its record of the encoder.
    """
    attributes: dict[str, Any] = getattr(store, "attributes", {})
    rate = store.seconds_per_feature
    left_out = getattr(store, "left_out", ())
    mend = "does not record its frame encoder completely: recreate it with tmapdiff convert"
    if folder is not None:
        encoder = load_frame_encoder(folder)
        who = "find_frame_encoder"
        if "model_sha256" in left_out:
            raise FeatureError(f"{who}: {store.description} {mend}.")
        if attributes.get("model_sha256") not in (None, encoder.fingerprint):
            expected = f"the encoder that made {store.description}, {attributes.get('model')}"
            got = f"another one in {folder}, {encoder.description}"
            raise FeatureError(message(who, expected, got))
        if encoder.feature_dim != store.feature_dim:
            expected = f"an encoder with the {store.feature_dim} channels of {store.description}"
            got = f"{encoder.feature_dim} from {encoder.description}"
            raise FeatureError(message(who, expected, got))
        if rate is None:
            expected = f"the rate of {store.description}, for a pipeline that takes videos"
            raise FeatureError(message(who, expected, "none", "Pass seconds_per_feature."))
        return EncoderMatch(encoder, 1 / rate, f"frame encoder: {encoder.description}")
    try:
        if {"frame_encoder", "model_sha256"} & {*left_out}:
            raise FeatureError(f"the store {mend}")
        if "frame_encoder" not in attributes or rate is None:
            raise FeatureError("the store does not record its frame encoder")
        encoder = _rebuild(json.loads(attributes["frame_encoder"]))
        if encoder.fingerprint != attributes.get("model_sha256"):
            rebuilt = f"{encoder.description} as rebuilt"
            raise FeatureError(f"{rebuilt} is not the one that made the features")
    # The file is untrusted, and there may be no network.
    except (TmapdiffError, TypeError, ValueError, AttributeError) as error:
        return EncoderMatch(None, None, f"the pipeline takes features, not videos: {error}")
    fps = attributes.get("fps", 1 / rate)
    return EncoderMatch(encoder, fps, f"frame encoder: {encoder.description}")


def _rebuild(arguments: dict[str, Any]) -> FrameEncoder:
    """Rebuild an encoder from the attributes of an untrusted file."""
    name, weights = str(arguments.get("model_name")), arguments.get("weights")
    if ":" in name:
        raise FeatureError(
            f"the store names {name}, which is untrusted: save the encoder and pass its folder"
        )
    if weights is not None and not str(weights).endswith(".safetensors"):
        raise FeatureError(f"the weights {weights} are no safetensors: save the encoder")
    if not arguments.get("pretrained"):
        raise FeatureError("its frame encoder has random weights, which cannot be rebuilt")
    return FrameEncoder(**arguments)
