"""Datasets and batches of annotations with features."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tmapdiff._core.checks import check_bool, check_int, check_range, check_shape, message
from tmapdiff._core.digests import add_tensors
from tmapdiff.data.annotations import Annotation, AnnotationSet
from tmapdiff.data.clips import divide_video, fill_clips
from tmapdiff.data.features import FeatureStore
from tmapdiff.data.negatives import MOST_NEGATIVES, OtherVideos
from tmapdiff.data.words import Vocabulary
from tmapdiff.errors import ArgumentError, FeatureError, ShapeError, TmapdiffError


@dataclass(frozen=True, eq=False)
class MomentSample:
    """A sample of `MomentDataset`: one query with its video, or a window of it.

    Args:
        features: Features of the clips.
        words: Indices or features of the words.
        annotation: The annotation. For a window, times are from its start.
        clip_seconds: Duration of a clip in seconds.
        num_clips: Number of clips inside the video, after which features are 0; None if all are.
        is_window: Whether it is a window of a longer video.

    Shape:
        - features: (N, D) float32, or (N * features_per_clip, D)
        - words: (L,) int64, or (L, C) if they are features
    """

    features: Tensor
    words: Tensor
    annotation: Annotation
    clip_seconds: float
    num_clips: int | None = None
    is_window: bool = False


@dataclass(frozen=True, eq=False)
class MomentBatch:
    """A batch of B queries with their videos and moments.

    Args:
        features: Features of the clips.
        words: Indices or features of the words, padded with 0.
        num_words: Number of words per query.
        moments: Start and end in seconds, padded with 0.
        num_moments: Number of moments per query; 0 if it describes nothing in the video.
        clip_seconds: Duration of a clip in seconds.
        durations: Duration of each video or window in seconds, rounded down.
        num_clips: Number of clips inside each video; None if all are.
        qids: Ids of the queries.
        video_ids: Ids of the videos.
        queries: The sentences.
        has_windows: Whether some samples are windows of longer videos.

    Shape:
        - features: (B, N, D) float32, or (B, N * features_per_clip, D)
        - words: (B, L) int64, or (B, L, C) if they are features
        - moments: (B, M, 2) float32
        - num_words, num_moments, num_clips: (B,) int64
        - clip_seconds, durations: (B,) float32
    """

    features: Tensor
    words: Tensor
    num_words: Tensor
    moments: Tensor
    num_moments: Tensor
    clip_seconds: Tensor
    durations: Tensor
    num_clips: Tensor | None
    qids: list[int | str]
    video_ids: list[str]
    queries: list[str]
    has_windows: bool = False

    def __len__(self) -> int:
        return len(self.qids)

    def __repr__(self) -> str:
        features = tuple(self.features.shape)
        return f"MomentBatch({len(self)} queries, features {features}, {self.features.device})"

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "MomentBatch":
        """Return the batch on a device, except `num_words`, which an LSTM reads on the CPU.

        Args:
            device: The device.
            non_blocking: Copy asynchronously, which needs pinned memory to be faster.
        """
        moved = self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, num_words=self.num_words.cpu())

    def pin_memory(self) -> "MomentBatch":
        """Return the batch in pinned memory; `DataLoader(pin_memory=True)` calls this."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> "MomentBatch":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


class MomentDataset(Dataset[MomentSample]):
    """The queries of an annotation set, with the features of their videos pooled to clips.

    Without `clip_seconds`, every video is divided into N clips (as in 2D-TAN). With it, clips have
    a fixed duration (as in MS-2D-TAN), and a longer video is represented by a window of N clips
    around a moment, drawn at each access from torch's random numbers (which `Trainer` seeds per
    sample), or by all its clips with `whole_videos`, for evaluation. A moment longer than the
    window fills it. Other moments of the query are clipped to the window, and kept if more than
    half of their duration is inside. Without a moment, any window is drawn.

    Args:
        annotations: The queries.
        store: Features of their videos.
        vocabulary: Vocabulary to encode the queries with. None with `word_features`.
        num_clips: Number of clips N per video or window.
        clip_seconds: Duration of a clip in seconds. By default, clips divide each video equally.
        whole_videos: Return all clips of videos with more than N; needs `clip_seconds`.
        clip_multiple: Number that divides the clips of a whole video, as clips of zeros are added.
            For a `MapGrid`, it is the stride of the coarsest scale, `2**(num_scales - 1)`.
        features_per_clip: Features per clip, for a model that averages them itself
            (`MultimodalEncoder`).
        word_features: Features of the words by sentence, for a model with `text_channels`, from
            `TransformersTextEncoder` or a pipeline's `encode_queries`.
        cache: Keep pooled features in memory, in each worker: N * D * 4 bytes per video (437 MB for
            all of Charades-STA with N = 64, D = 256).

    Shape:
        - word_features: (L, C) each, L >= 1

    Raises:
        ArgumentError: If there are no annotations, a query has no word or no features, a number is
            out of range, `num_clips` is not a multiple of `clip_multiple`, `clip_seconds` is
            missing for `whole_videos`, a flag is not a bool, there is not exactly one of
            `vocabulary` and `word_features`, or features are not finite.
        ShapeError: If `word_features` have another shape.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from tmapdiff.data import ActionTimelineFeatures, SyntheticActivities
        >>> data = SyntheticActivities(num_videos=4)
        >>> store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes)
        >>> vocabulary = Vocabulary.from_sentences(item.query for item in data.annotations)
        >>> dataset = MomentDataset(data.annotations, store, vocabulary, num_clips=64)
        >>> batch = next(iter(DataLoader(dataset, batch_size=8, collate_fn=collate_moments)))
        >>> batch.features.shape
        torch.Size([8, 64, 256])
    """

    def __init__(
        self,
        annotations: AnnotationSet,
        store: FeatureStore,
        vocabulary: Vocabulary | None,
        num_clips: int,
        *,
        clip_seconds: float | None = None,
        whole_videos: bool = False,
        clip_multiple: int = 1,
        features_per_clip: int = 1,
        word_features: Mapping[str, Tensor] | None = None,
        cache: bool = True,
    ) -> None:
        self.annotations = annotations
        self.store = store
        self.vocabulary = vocabulary
        who = "MomentDataset"
        self.num_clips = check_int(who, "num_clips", num_clips, at_least=1)
        self.clip_multiple = check_int(who, "clip_multiple", clip_multiple, at_least=1)
        self.features_per_clip = check_int(who, "features_per_clip", features_per_clip, at_least=1)
        check_bool(who, "whole_videos", whole_videos)
        check_bool(who, "cache", cache)
        self.clip_seconds = clip_seconds
        self.whole_videos = whole_videos
        self.cache = cache
        if clip_seconds is not None:
            check_range(who, "clip_seconds", clip_seconds, 0, open_low=True)
        elif whole_videos:
            raise ArgumentError(message(who, "clip_seconds for whole_videos", "None"))
        if num_clips % clip_multiple:
            expected = f"num_clips to be a multiple of clip_multiple = {clip_multiple}"
            raise ArgumentError(message(who, expected, num_clips))
        if len(annotations) == 0:
            hint = f"They come from {annotations.report}."
            raise ArgumentError(message(who, "at least one annotation", "none", hint))
        if (vocabulary is None) == (word_features is None):
            got = "none" if vocabulary is None else "both"
            raise ArgumentError(message(who, "a vocabulary or word_features", got))
        # Encode now, so that a sentence without a word fails here and not mid-epoch.
        self._words = [_encoded(vocabulary, word_features, item) for item in annotations]
        self._pooled: dict[tuple[str, float], Tensor] = {}
        self.negatives = 0.0  # share of sentences paired with another video
        self._others: OtherVideos | None = None

    def with_negatives(self, share: float) -> "MomentDataset":
        """Return this dataset with random queries without an answer, for training.

        At each access, a sentence is paired with probability `share` with another video and no
        moment, unless it has no moment anyway or no such video exists. The other video comes from
        another source video (see `AnnotationSet.split_videos`) in which the sentence is not
        annotated, and is drawn as windows are. For evaluation, use `add_negatives`.

        Args:
            share: Probability from 0 to 0.9.

        Raises:
            ArgumentError: If `share` is outside [0, 0.9], or there is no query to pair.
        """
        who = "MomentDataset.with_negatives"
        found = copy(self)
        found.negatives = check_range(who, "share", share, 0, MOST_NEGATIVES)
        found._others = OtherVideos(self.annotations) if share else None
        return found

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def queries_sha256(self) -> str:
        """Digest of the queries, their words and moments, and how videos are divided into clips."""
        settings = [
            self.clip_seconds,
            self.whole_videos,
            self.clip_multiple,
            self.features_per_clip,
        ]
        stated = [
            [str(one.qid), one.video_id, one.query, one.duration, one.moments]
            for one in self.annotations
        ]
        digest = hashlib.sha256(json.dumps([settings, stated], default=float).encode())
        add_tensors(digest, (("", words) for words in self._words))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers fill their own cache, as sending it would be slow.
        return {**self.__dict__, "_pooled": {}}

    def __getitem__(self, index: int) -> MomentSample:
        """Return a query with its video.

        Raises:
            FeatureError: If the video's features cannot be used. Messages, including the store's,
                name the video and the query.
        """
        item = self.annotations[index]
        others = self._others
        if others and others.can_pair(item) and float(torch.rand(())) < self.negatives:
            item = others.draw(item)
        try:
            clips = self._clips(item.video_id, item.duration)
        except Exception as error:
            where = f"(video {item.video_id!r}, query {item.qid!r}: {item.query!r})"
            if isinstance(error, TmapdiffError):
                raise type(error)(f"{error} {where}") from error
            raise FeatureError(f"{error!r} {where}") from error
        words = self._words[index]
        if self.clip_seconds is None:
            return MomentSample(clips.clone(), words, item, item.duration / self.num_clips)
        each = self.features_per_clip
        num_clips = len(clips) // each
        if self.whole_videos or num_clips <= self.num_clips:
            features = fill_clips(clips, self.num_clips, self.clip_multiple, each)
            return MomentSample(features, words, item, self.clip_seconds, num_clips)
        first, item = draw_window(item, self.clip_seconds, self.num_clips, num_clips)
        features = clips[first * each : (first + self.num_clips) * each].clone()
        return MomentSample(
            features, words, item, self.clip_seconds, self.num_clips, is_window=True
        )

    def _clips(self, video_id: str, duration: float) -> Tensor:
        """Return the features of all clips, possibly in the memory of the cache."""
        key = (video_id, duration)
        if key in self._pooled:
            return self._pooled[key]
        features, who = self.store[video_id], self.store.description
        check_shape(who, "features", features, "T D", {"D": self.store.feature_dim})
        clips = divide_video(
            features.float(),
            duration=duration,
            seconds_per_feature=self.store.seconds_per_feature,
            num_clips=self.num_clips,
            clip_seconds=self.clip_seconds,
            features_per_clip=self.features_per_clip,
        )
        if not clips.isfinite().all():
            got = f"NaN or infinity in {int((~clips.isfinite()).any(dim=1).sum())} clips"
            raise FeatureError(message(who, "finite features", got))
        if self.cache:
            self._pooled[key] = clips
        return clips


def collate_moments(samples: Sequence[MomentSample]) -> MomentBatch:
    """Make a batch of samples, padding whole videos to the longest.

    Args:
        samples: Samples of one dataset.

    Raises:
        ArgumentError: If there is no sample.
        ShapeError: If samples differ in channels or, without `num_clips`, in clips.
    """
    if len(samples) == 0:
        raise ArgumentError(message("collate_moments", "at least one sample", "none"))
    sizes = check_shape("collate_moments", "features", samples[0].features, "N D")
    counts = [sample.num_clips for sample in samples if sample.num_clips is not None]
    axes = "N D" if len(counts) < len(samples) else "any D"
    for sample in samples:
        check_shape("collate_moments", "features", sample.features, axes, sizes)
    items = [sample.annotation for sample in samples]
    return MomentBatch(
        features=pad_sequence([sample.features for sample in samples], batch_first=True),
        words=pad_sequence([sample.words for sample in samples], batch_first=True),
        num_words=torch.tensor([len(sample.words) for sample in samples]),
        moments=pad_sequence(
            [torch.tensor(item.moments, dtype=torch.float32).reshape(-1, 2) for item in items],
            batch_first=True,
        ),
        num_moments=torch.tensor([len(item.moments) for item in items]),
        clip_seconds=torch.tensor([one.clip_seconds for one in samples], dtype=torch.float32),
        durations=_not_after([item.duration for item in items]),
        num_clips=torch.tensor(counts) if len(counts) == len(samples) else None,
        qids=[item.qid for item in items],
        video_ids=[item.video_id for item in items],
        queries=[item.query for item in items],
        has_windows=any(sample.is_window for sample in samples),
    )


def _not_after(seconds: Sequence[float]) -> Tensor:
    """Round down to float32, so that no moment ends after the video."""
    exact = torch.tensor(seconds, dtype=torch.float64)
    near = exact.float()
    return near.where(near.double() <= exact, near.nextafter(near.new_zeros(())))


def _encoded(
    vocabulary: Vocabulary | None, word_features: Mapping[str, Tensor] | None, item: Annotation
) -> Tensor:
    try:
        if vocabulary is not None:
            return vocabulary.encode(item.query)
        features = (word_features or {}).get(item.query)
        if features is None:
            expected = "word_features of every query"
            raise ArgumentError(message("MomentDataset", expected, f"none of {item.query!r}"))
        if not check_shape("MomentDataset", "word_features", features, "L C")["L"]:
            expected = "word_features of at least one word"
            raise ArgumentError(message("MomentDataset", expected, f"none of {item.query!r}"))
        if not features.isfinite().all():
            got = f"NaN or infinity of {item.query!r}"
            raise ArgumentError(message("MomentDataset", "finite word_features", got))
        return features
    except (ArgumentError, ShapeError) as error:
        raise type(error)(f"{error} (video {item.video_id!r}, query {item.qid!r})") from error


def draw_window(
    item: Annotation, clip_seconds: float, num_clips: int, video_clips: int
) -> tuple[int, Annotation]:
    """Return the first of `num_clips` clips, and the annotation with times from its start.

    The window is around one of the moments, if there is any: uniform over all windows that contain
    it, or that lie in it if it is longer. It uses torch's global random numbers.
    """
    start, end = 0.0, item.duration
    if item.moments:
        start, end = item.moments[_draw(0, len(item.moments) - 1)]
    # Tiny deviations from the edge of a clip are rounding errors.
    first = min(math.floor(start / clip_seconds + 1e-6), video_clips - 1)
    last = min(math.ceil(end / clip_seconds - 1e-6), video_clips)
    earliest = min(max(last - num_clips, 0), video_clips - num_clips)
    latest = min(first, video_clips - num_clips)
    # `earliest` and `latest` are swapped if the moment is longer than the window.
    clip = _draw(min(earliest, latest), max(earliest, latest))

    opens = clip * clip_seconds
    closes = min(opens + num_clips * clip_seconds, item.duration)
    kept = []
    for other_start, other_end in item.moments:
        inside = max(other_start, opens), min(other_end, closes)
        chosen = (other_start, other_end) == (start, end)
        if chosen or inside[1] - inside[0] > (other_end - other_start) / 2:
            kept.append((inside[0] - opens, inside[1] - opens))
    return clip, replace(item, duration=closes - opens, moments=tuple(kept))


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
