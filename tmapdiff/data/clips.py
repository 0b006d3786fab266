"""Pooling the features of a video to its clips."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tmapdiff._core.arrays import features_bytes
from tmapdiff._core.checks import check_floating, check_int, check_range, check_shape, message
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.data._durations import covers
from tmapdiff.errors import ArgumentError, FeatureError

_CLIPS_PER_FEATURE = 1000  # at most, on average


def divide_video(
    features: Tensor,
    *,
    duration: float,
    num_clips: int,
    clip_seconds: float | None = None,
    features_per_clip: int = 1,
    seconds_per_feature: float | None = None,
) -> Tensor:
    """Divide a video into clips, and pool its features to `features_per_clip` per clip.

    With `clip_seconds`, the last clip may extend past the end, and `num_clips` is ignored. More
    than 1,000 clips per feature raise ArgumentError; for other errors, see `pool_features`.
    """
    if clip_seconds is not None:
        most = _CLIPS_PER_FEATURE * len(features)
        if most and duration / most > clip_seconds:
            expected = f"clip_seconds of at least {duration / most:.3g}"
            hint = f"There are {len(features)} features of the {duration:g} s."
            raise ArgumentError(message("divide_video", expected, clip_seconds, hint))
        # A tiny remainder is rounding error, not another clip.
        num_clips = max(1, math.ceil(duration / clip_seconds - 1e-6))
        clip_seconds /= features_per_clip
    return pool_features(
        features,
        num_clips * features_per_clip,
        duration=duration,
        seconds_per_feature=seconds_per_feature,
        clip_seconds=clip_seconds,
    )


def fill_clips(
    features: Tensor, num_clips: int, clip_multiple: int = 1, features_per_clip: int = 1
) -> Tensor:
    """Pad with clips of zeros to at least `num_clips`, and a multiple of `clip_multiple`."""
    clips = len(features) // features_per_clip
    whole = -(-max(clips, num_clips) // clip_multiple) * clip_multiple
    return F.pad(features, (0, 0, 0, (whole - clips) * features_per_clip))


def pool_features(
    features: Tensor,
    num_clips: int,
    *,
    duration: float,
    seconds_per_feature: float | None = None,
    clip_seconds: float | None = None,
) -> Tensor:
    """Pool the features of a video to its clips.

    A clip gets the mean of the features centered in it or, if there are none, the feature whose
    center is nearest to the clip's.

    Args:
        features: Features of consecutive pieces of the video.
        num_clips: Number of clips N.
        duration: Duration of the video in seconds.
        seconds_per_feature: Seconds between features. By default, they divide the video equally.
        clip_seconds: Duration of a clip in seconds. By default, clips divide the video equally.

    Shape:
        - features: (T, D), T >= 1
        - returns: (N, D)

    Raises:
        ShapeError: If `features` has another shape.
        ArgumentError: If `features` is empty or not floating, `num_clips` is not an integer >= 1,
            or a number of seconds is not positive.
        FeatureError: If the time the features cover differs from `duration` by more than 2 features
            and more than 5 %, as with a wrong `seconds_per_feature` or transposed features.
        SizeLimitError: If the features of all clips exceed the memory limit.
    """
    who = "pool_features"
    num_features = check_shape(who, "features", features, "T D")["T"]
    check_floating(who, "features", features)
    if num_features == 0:
        raise ArgumentError(message(who, "at least one feature", "none"))
    num_clips = check_int(who, "num_clips", num_clips, at_least=1)
    check_item_bytes(who, "features of clips", features_bytes((num_clips, features.shape[1]), 4))
    duration = check_range(who, "duration", duration, 0, open_low=True)
    stride = seconds_per_feature
    if stride is not None:
        stride = check_range(who, "seconds_per_feature", stride, 0, open_low=True)
    if clip_seconds is not None:
        check_range(who, "clip_seconds", clip_seconds, 0, open_low=True)
    if stride is None and clip_seconds is None:
        # In units of features, so that centers on an edge of clips are exact.
        stride, duration = 1.0, float(num_features)
    elif stride is None:
        stride = duration / num_features
    covered = num_features * stride
    if not covers(num_features, stride, duration):
        expected = f"features that cover the {duration:g} s of the video"
        got = f"{covered:g} s ({num_features} features of {stride:g} s)"
        hint = f"They would fit with seconds_per_feature = {duration / num_features:.3g}"
        # Which of the two is wrong cannot be told.
        if covers(features.shape[1], stride, duration):
            hint += f", or transposed, as the other axis has size {features.shape[1]}"
        raise FeatureError(message(who, expected, got, f"{hint}."))

    centers = (torch.arange(num_features, dtype=torch.float64) + 0.5) * stride
    end = duration if clip_seconds is None else num_clips * clip_seconds
    # Clamped, as the quotients may exceed the range of integers.
    clip = (centers * num_clips / end).floor().clamp(max=num_clips).long()
    # The last clip includes its end; features after it belong to no clip.
    clip[centers == end] = num_clips - 1
    inside = (clip < num_clips).to(features.device)
    clip = clip.to(features.device)[inside]
    # Summed at least in float32, as a few hundred features overflow float16.
    wide = features[inside].to(torch.promote_types(features.dtype, torch.float32))
    sums = wide.new_zeros(num_clips, features.shape[1]).index_add_(0, clip, wide)
    counts = torch.bincount(clip, minlength=num_clips)[:, None]
    # The nearest feature is the one that contains the clip's center.
    middles = (torch.arange(num_clips, dtype=torch.float64) + 0.5) * end / num_clips
    nearest = (middles / stride).floor().clamp(max=num_features - 1).long().to(features.device)
    means = (sums / counts.clamp(min=1)).to(features.dtype)
    return torch.where(counts > 0, means, features[nearest])
