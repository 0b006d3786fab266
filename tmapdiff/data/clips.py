"""From the features of a video to those of its clips."""

import math

import torch.nn.functional as F
from torch import Tensor

from tmapdiff._core.checks import check_int, check_range, check_shape, message
from tmapdiff.data.features import pool_features
from tmapdiff.errors import ArgumentError

_CLIPS_OF_A_FEATURE = 1000  # that are cut out of one feature at most, on average


def divide_video(
    features: Tensor,
    *,
    duration: float,
    num_clips: int,
    clip_seconds: float | None = None,
    features_per_clip: int = 1,
    seconds_per_feature: float | None = None,
) -> Tensor:
    """Divide a video into clips, and pool its features to them.

    Args:
        features: One feature for each piece of the video, in order.
        duration: Seconds the video lasts.
        num_clips: Clips that divide the video equally; not read with `clip_seconds`.
        clip_seconds: Seconds a clip lasts; the last one may reach past the end. If None,
            `num_clips` divide the video equally.
        features_per_clip: Features that each clip gets.
        seconds_per_feature: Seconds from one feature to the next. If None, the features divide the
            video equally.

    Shape:
        - features: (T, D), T >= 1
        - returns: (clips * features_per_clip, D)

    Raises:
        ArgumentError: If a number is not positive, or there would be more than 1,000 clips for each
            feature; or as `pool_features`.
        ShapeError, FeatureError, SizeLimitError: As `pool_features`.
    """
    each = check_int("divide_video", "features_per_clip", features_per_clip, at_least=1)
    if clip_seconds is not None:
        check_range("divide_video", "clip_seconds", clip_seconds, 0, open_low=True)
        check_range("divide_video", "duration", duration, 0, open_low=True)
        most = _CLIPS_OF_A_FEATURE * check_shape("divide_video", "features", features, "T D")["T"]
        if most and duration / most > clip_seconds:
            expected = f"clip_seconds of at least {duration / most:.3g}"
            hint = f"There are {most // _CLIPS_OF_A_FEATURE} features of the {duration:g} s."
            raise ArgumentError(message("divide_video", expected, clip_seconds, hint))
        # A little of a clip too many is float error, not video.
        num_clips = max(1, math.ceil(duration / clip_seconds - 1e-6))
        clip_seconds /= each
    return pool_features(
        features,
        num_clips * each,
        duration=duration,
        seconds_per_feature=seconds_per_feature,
        clip_seconds=clip_seconds,
    )


def fill_clips(
    features: Tensor, num_clips: int, clip_multiple: int = 1, features_per_clip: int = 1
) -> Tensor:
    """Fill a video up with clips of zeros, for models that want a number of clips.

    Args:
        features: Features of the clips.
        num_clips: Fewest clips of the result.
        clip_multiple: The clips of the result are a multiple of these: for a `MapGrid`, the clips
            of its coarsest scale, `2**(num_scales - 1)`.
        features_per_clip: Features of each clip.

    Shape:
        - features: (clips * features_per_clip, D)
        - returns: (filled clips * features_per_clip, D), not the memory of `features`
    """
    clips = len(features) // features_per_clip
    whole = -(-max(clips, num_clips) // clip_multiple) * clip_multiple
    return F.pad(features, (0, 0, 0, (whole - clips) * features_per_clip))
