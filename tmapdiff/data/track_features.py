"""Features of subtitles and transcripts, in place of video features."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tmapdiff._core.arrays import features_bytes
from tmapdiff._core.checks import check_int, check_range, message
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.data._video_ids import by_id
from tmapdiff.data.text_tracks import Cue, find_tracks, load_text_track
from tmapdiff.errors import ArgumentError, MissingFeatureError

_BATCH_SIZE = 64
_SMALLEST_WEIGHT = 1e-6  # share of a feature's time; less is a rounding error


class SentenceEncoder(Protocol):
    """Computes one vector per sentence, such as a `TransformersTextEncoder`."""

    @property
    def sentence_channels(self) -> int:
        """Width of the vectors."""

    def __call__(self, sentences: Sequence[str]) -> Any:
        """Return an object whose `sentences` are the vectors, (B, sentence_channels)."""


def encode_text_track(
    cues: Sequence[Cue],
    encoder: SentenceEncoder,
    *,
    seconds_per_feature: float = 1.0,
    duration: float | None = None,
) -> Tensor:
    """Compute features of a track of timed texts.

    A feature is the mean sentence vector of the cues in its piece of time, weighted by their time
    in it and scaled to unit norm; in gaps it is 0.

    Args:
        cues: The cues.
        encoder: Encoder of the texts.
        seconds_per_feature: Seconds between features.
        duration: Duration of the video in seconds, after which cues are ignored. Defaults to the
            end of the last cue.

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
        times = times.clamp(max=duration / stride)
        place = times.floor().long()
        part = (times - place)[:, None]
        changes.index_add_(0, place, sign * (1 - part) * vectors)
        changes.index_add_(0, place + 1, sign * part * vectors)
    sums = changes.cumsum(0)[:count]
    said = sums[:, -1:] > _SMALLEST_WEIGHT
    return F.normalize(sums[:, :-1], dim=1).where(said, 0.0).float()


def _vectors(texts: Sequence[str], encoder: SentenceEncoder) -> Tensor:
    """Encode texts without duplicates, sorted by length to reduce padding."""
    found: dict[str, Tensor] = {}
    different = sorted(dict.fromkeys(texts), key=len)
    for start in range(0, len(different), _BATCH_SIZE):
        batch = different[start : start + _BATCH_SIZE]
        found.update(zip(batch, encoder(batch).sentences, strict=True))
    return torch.stack([found[one] for one in texts])


class TextTrackFeatures:
    """Features of subtitles and transcripts, as a feature store.

    Tracks are read (`load_text_track`) and encoded (`encode_text_track`) on access.

    Args:
        tracks: A folder of `.srt`, `.vtt` and `.jsonl` files, whose names are the ids; or files or
            cues by id.
        encoder: Encoder of the texts.
        seconds_per_feature: Seconds between features.
        durations: Durations of videos in seconds, by id. Defaults to the end of the last cue.

    Raises:
        FileError: If the folder cannot be read.
        ArgumentError: If a number of seconds is not positive, there is no track, or two files of
            the folder have the same id.

    Example:
        >>> name = "sentence-transformers/all-MiniLM-L6-v2"
        >>> encoder = TransformersTextEncoder(name)  # doctest: +SKIP
        >>> store = TextTrackFeatures("talks", encoder)  # doctest: +SKIP
        >>> store["opening"].shape  # doctest: +SKIP
        torch.Size([612, 384])
    """

    def __init__(
        self,
        tracks: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str] | Sequence[Cue]],
        encoder: SentenceEncoder,
        *,
        seconds_per_feature: float = 1.0,
        durations: Mapping[str, Any] | None = None,
    ) -> None:
        who = "TextTrackFeatures"
        self.encoder = encoder
        self.seconds_per_feature = check_range(
            who, "seconds_per_feature", seconds_per_feature, 0, open_low=True
        )
        self.durations = {
            video_id: check_range(who, f"the duration of {video_id}", seconds, 0, open_low=True)
            for video_id, seconds in (durations or {}).items()
        }
        self.tracks: dict[str, Any] = (
            dict(tracks) if isinstance(tracks, Mapping) else by_id(who, find_tracks(Path(tracks)))
        )
        if not self.tracks:
            raise ArgumentError(message(who, "tracks of timed texts", f"none in {tracks}"))

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.encoder.sentence_channels

    @property
    def description(self) -> str:
        """Name of the features in tables."""
        rate = 1 / self.seconds_per_feature
        return f"sentences of text tracks (D {self.feature_dim}, {rate:g}/s)"

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Ids of the videos with tracks."""
        return tuple(self.tracks)

    def cues(self, video_id: str) -> tuple[Cue, ...]:
        """Return the texts of video `video_id`.

        Raises:
            MissingFeatureError: If there is no track of it.
            FileError, AnnotationError, ConfigError: As `load_text_track`.
        """
        if video_id not in self.tracks:
            raise MissingFeatureError(message("TextTrackFeatures", "an id of a track", video_id))
        track = self.tracks[video_id]
        is_file = isinstance(track, str | os.PathLike)
        return load_text_track(track) if is_file else tuple(track)

    def __repr__(self) -> str:
        return f"<{self.description}: {len(self.tracks):,} videos>"

    def __contains__(self, video_id: object) -> bool:
        return video_id in self.tracks

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video, with errors as of `cues` and `encode_text_track`."""
        return encode_text_track(
            self.cues(video_id),
            self.encoder,
            seconds_per_feature=self.seconds_per_feature,
            duration=self.durations.get(video_id),
        )
