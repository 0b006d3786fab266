"""Features of subtitles and transcripts, in place of video features."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tmapdiff._core.arrays import features_bytes
from tmapdiff._core.checks import check_int, check_range
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.data.text_tracks import Cue

_BATCH_SIZE = 64
_SMALLEST_WEIGHT = 1e-6  # share of a feature's time; less is a rounding error


def encode_text_track(
    cues: Sequence[Cue],
    encoder: Any,
    *,
    seconds_per_feature: float = 1.0,
    duration: float | None = None,
) -> Tensor:
    """Compute features of a track of timed texts.

    A feature is the mean sentence vector of the cues in its piece of time, weighted by their time
    in it and scaled to unit norm; in gaps it is 0.

    Args:
        cues: The cues.
        encoder: Encoder of the texts, such as a `TransformersTextEncoder`.
        seconds_per_feature: Seconds between features.
        duration: Duration of the video in seconds. Defaults to the end of the last cue.

    Shape:
        - returns: (ceil(duration / seconds_per_feature), sentence_channels) float32

    Raises:
        ArgumentError: If there is no cue, or a number is not positive.
        SizeLimitError: If the features exceed the memory limit.
        TmapdiffError: As the encoder.
    """
    who = "encode_text_track"
    check_int(who, "the number of cues", len(cues), at_least=1)
    stride = check_range(who, "seconds_per_feature", seconds_per_feature, 0, open_low=True)
    if duration is None:
        duration = max(cue.end for cue in cues)
    check_range(who, "duration", duration, 0, open_low=True)
    count = max(1, math.ceil(duration / stride - 1e-6))
    shape = (count + 2, encoder.sentence_channels + 1)
    check_item_bytes(who, "features of a track", features_bytes(shape, 8))
    check_item_bytes(who, "vectors of cues", features_bytes((len(cues), shape[1]), 8))
    vectors = _vectors([cue.text for cue in cues], encoder)
    # The last column sums the time of all cues.
    vectors = F.pad(F.normalize(vectors.double(), dim=1), (0, 1), value=1.0)

    # Cumulative sums: each cue is added at its start and subtracted at its end.
    changes = torch.zeros(shape, dtype=torch.float64)
    for name, sign in (("start", 1), ("end", -1)):
        times = torch.tensor([getattr(cue, name) for cue in cues], dtype=torch.float64) / stride
        times = times.clamp(max=count)
        place = times.floor().long()
        part = (times - place)[:, None]
        changes.index_add_(0, place, sign * (1 - part) * vectors)
        changes.index_add_(0, place + 1, sign * part * vectors)
    sums = changes.cumsum(0)[:count]
    said = sums[:, -1:] > _SMALLEST_WEIGHT
    return F.normalize(sums[:, :-1], dim=1).where(said, 0.0).float()


def _vectors(texts: Sequence[str], encoder: Any) -> Tensor:
    """Encode texts without duplicates, sorted by length to reduce padding."""
    found: dict[str, Tensor] = {}
    different = sorted(dict.fromkeys(texts), key=len)
    for start in range(0, len(different), _BATCH_SIZE):
        batch = different[start : start + _BATCH_SIZE]
        found.update(zip(batch, encoder(batch).sentences, strict=True))
    return torch.stack([found[one] for one in texts])
