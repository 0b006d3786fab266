"""From annotations and features to batches."""

import hashlib
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
from tmapdiff.data.windows import draw_window
from tmapdiff.data.words import Vocabulary
from tmapdiff.errors import ArgumentError, FeatureError, ShapeError, TmapdiffError


@dataclass(frozen=True, eq=False)
class MomentSample:
    """One query and its video, or a window of it, as `MomentDataset` gives it.

    Args:
        features: Features of the clips.
        words: Indices of the words; or features of them, of a dataset of such.
        annotation: What they were made of; of a window, with times from the window's start.
        clip_seconds: Seconds a clip lasts.
        num_clips: Clips inside the video, after which features are 0; None if all are.
        is_window: Whether it is a window of a longer video, drawn around a moment.

    Shape:
        - features: (N, D) float32; (N * features_per_clip, D) of a dataset with several per clip
        - words: (L,) int64; (L, C) of features
    """

    features: Tensor
    words: Tensor
    annotation: Annotation
    clip_seconds: float
    num_clips: int | None = None
    is_window: bool = False


@dataclass(frozen=True, eq=False)
class MomentBatch:
    """B queries with their videos and moments: what a model trains on.

    Args:
        features: Features of the clips.
        words: Indices of the words, or features of them; 0 after the last.
        num_words: How many words each query has.
        moments: Start and end in seconds; 0 after the last.
        num_moments: How many moments each query has; 0, if it describes nothing in the video.
        clip_seconds: Seconds a clip lasts.
        durations: Seconds the video, or the window of it, lasts; rounded down.
        num_clips: Clips inside each video; None if all are.
        qids: Names of the queries.
        video_ids: Names of the videos.
        queries: The sentences.
        has_windows: Whether some are windows of longer videos, drawn around a moment.

    Shape:
        - features: (B, N, D) float32; (B, N * features_per_clip, D) with several per clip
        - words: (B, L) int64; (B, L, C) of features
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
        """Return the batch with its tensors on a device, but `num_words` on the CPU.

        There the LSTM of the text encoder reads it; from elsewhere it would wait for the device.

        Args:
            device: The device.
            non_blocking: Do not wait for the copy; it is only quicker from pinned memory.
        """
        moved = self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, num_words=self.num_words.cpu())

    def pin_memory(self) -> "MomentBatch":
        """Return the batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> "MomentBatch":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


class MomentDataset(Dataset[MomentSample]):
    """The queries of an annotation set, with the features of their videos pooled to clips.

    Without `clip_seconds`, every video is divided into N clips, long or short as it is (as in
    2D-TAN). With it, clips are of one length (as in MS-2D-TAN): a video that has more than N is
    seen through a window of N clips, drawn anew at each access from torch's random numbers (which
    `Trainer` seeds for each sample), with the moment inside; or as a whole, with `whole_videos`, as
    for tests. A moment longer than the window fills it; other moments of the query stay, cut to the
    window, when more than half of them is inside. Of a query without a moment, any window is drawn.

    `with_negatives` gives one that trains on queries with no answer, too.

    Args:
        annotations: The queries.
        store: Features of their videos.
        vocabulary: Words to encode the queries with; None with `word_features`.
        num_clips: Clips a video is divided into, or a window has, N.
        clip_seconds: Seconds a clip lasts. By default, the clips divide each video equally.
        whole_videos: Give videos that have more than N clips as a whole; needs `clip_seconds`.
        clip_multiple: As for `fill_clips`, of whole videos.
        features_per_clip: Features that each clip is pooled to, for a model that averages them
            itself (`MultimodalEncoder`).
        word_features: Features of the words of each query, by its sentence, for a model with
            `text_channels`: from `TransformersTextEncoder` or a pipeline's `encode_queries`.
        cache: Keep the pooled features of each video in memory, in each worker: N * D * 4 bytes per
            video (437 MB for all of Charades-STA with N = 64, D = 256).

    Shape:
        - word_features: (L, C) each, L >= 1

    Raises:
        ArgumentError: If there are no annotations, a query has no word or no features, a number of
            clips or features is not an integer >= 1, `num_clips` is no multiple, `clip_seconds` is
            not positive, or missing for `whole_videos`, a switch is not True or False, there is
            neither a vocabulary nor features of words, or both, or features are not finite.
        ShapeError: If features of words have no such shape.

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
        # Encode now, so that a sentence without a word fails here and not in the midst of an epoch.
        self._words = [_encoded(vocabulary, word_features, item) for item in annotations]
        self._pooled: dict[tuple[str, float], Tensor] = {}
        self._negatives = 0.0
        self._others: OtherVideos | None = None

    @property
    def negatives(self) -> float:
        """Share of the sentences that are paired with another video, see `with_negatives`."""
        return self._negatives

    def with_negatives(self, share: float) -> "MomentDataset":
        """Return this data set with queries that have no answer: to train on, not to evaluate.

        At each access, a sentence comes with probability `share` with another of the videos and no
        moment. It is drawn as windows are, from torch's random numbers, which `Trainer` seeds for
        each sample and epoch; and never from a source video (`AnnotationSet.split_videos` says what
        that is) of which the same sentence is annotated. A query that has no moment, or for which
        there is no such video, stays as it is. Features are shared with this data set. To evaluate,
        `add_negatives` draws once.

        Args:
            share: From 0, as it is without this, to 0.9.

        Raises:
            ArgumentError: If `share` is outside [0, 0.9], or there is no query to pair.
        """
        who = "MomentDataset.with_negatives"
        found = copy(self)
        found._negatives = check_range(who, "share", share, 0, MOST_NEGATIVES)
        found._others = OtherVideos(self.annotations) if share else None
        return found

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def word_features_sha256(self) -> str | None:
        """Digest of the features of all queries' words; None with a vocabulary."""
        if self.vocabulary is not None:
            return None
        digest = hashlib.sha256()
        add_tensors(digest, (("", words) for words in self._words))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers fill their own cache: it would not be quick to send.
        return {**self.__dict__, "_pooled": {}}

    def __getitem__(self, index: int) -> MomentSample:
        """Return a query with its video.

        Raises:
            FeatureError: If the video's features cannot be used, or are not finite. The message, as
                that of what the store raises, names the video and the query.
        """
        item = self.annotations[index]
        others = self._others
        if others and others.can_pair(item) and float(torch.rand(())) < self._negatives:
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
        """Return the features of all clips, in order; the memory may be the cache's."""
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
    """Make a batch of samples; whole videos are filled up to the longest with zeros.

    Args:
        samples: Samples of one dataset, at least one.

    Raises:
        ArgumentError: If there is no sample.
        ShapeError: If the features of two samples differ in channels or, where clips are not
            counted, in clips.
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
    """Round down to float32: a moment that ends there must not end after the video."""
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
