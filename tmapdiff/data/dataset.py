"""From annotations and features to batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tmapdiff._checks import check_int, check_shape, message
from tmapdiff.data.annotations import Annotation, AnnotationSet
from tmapdiff.data.features import FeatureStore, pool_features
from tmapdiff.data.words import Vocabulary
from tmapdiff.errors import ArgumentError, FeatureError, TmapdiffError


@dataclass(frozen=True, eq=False)
class MomentSample:
    """One query and its video, as `MomentDataset` gives it.

    Args:
        features: Features of the clips.
        words: Indices of the words.
        annotation: What they were made of.

    Shape:
        - features: (N, D) float32
        - words: (L,) int64
    """

    features: Tensor
    words: Tensor
    annotation: Annotation


@dataclass(frozen=True, eq=False)
class MomentBatch:
    """B queries with their videos and moments: what a model trains on.

    Args:
        features: Features of the clips.
        words: Indices of the words; 0 after the last.
        num_words: How many words each query has.
        moments: Start and end in seconds; 0 after the last.
        num_moments: How many moments each query has.
        clip_seconds: Seconds a clip lasts.
        durations: Seconds the video lasts.
        qids: Names of the queries.
        video_ids: Names of the videos.
        queries: The sentences.

    Shape:
        - features: (B, N, D) float32
        - words: (B, L) int64
        - num_words: (B,) int64
        - moments: (B, M, 2) float32
        - num_moments: (B,) int64
        - clip_seconds: (B,) float32
        - durations: (B,) float32
    """

    features: Tensor
    words: Tensor
    num_words: Tensor
    moments: Tensor
    num_moments: Tensor
    clip_seconds: Tensor
    durations: Tensor
    qids: list[int | str]
    video_ids: list[str]
    queries: list[str]

    def __len__(self) -> int:
        return len(self.qids)

    def __repr__(self) -> str:
        features = tuple(self.features.shape)
        return f"MomentBatch({len(self)} queries, features {features}, {self.features.device})"

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "MomentBatch":
        """Return the batch with its tensors on a device.

        Args:
            device: The device.
            non_blocking: Do not wait for the copy; it is only quicker from pinned memory.
        """
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MomentBatch":
        """Return the batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> "MomentBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = change(value)
        return MomentBatch(**values)


class MomentDataset(Dataset[MomentSample]):
    """The queries of an annotation set, with the features of their videos pooled to clips.

    Args:
        annotations: The queries.
        store: Features of their videos.
        vocabulary: Words to encode the queries with.
        num_clips: Clips a video is divided into, N.
        cache: Keep the pooled features of each video in memory once it was used: N * D * 4 bytes a
            video (437 MB for all of Charades-STA with N = 64, D = 256), in each worker.

    Raises:
        ArgumentError: If there are no annotations, a query has no word, or `num_clips` is not an
            integer >= 1.

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
        vocabulary: Vocabulary,
        num_clips: int,
        cache: bool = True,
    ) -> None:
        self.annotations = annotations
        self.store = store
        self.vocabulary = vocabulary
        self.num_clips = check_int("MomentDataset", "num_clips", num_clips, at_least=1)
        self.cache = cache
        if len(annotations) == 0:
            hint = f"They come from {annotations.report}."
            raise ArgumentError(message("MomentDataset", "at least one annotation", "none", hint))
        self._pooled: dict[tuple[str, float], Tensor] = {}
        # Now rather than on access: a sentence without a word must not end an epoch.
        self._words = [_encoded(vocabulary, item) for item in annotations]

    def __len__(self) -> int:
        return len(self.annotations)

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers fill their own cache: it would not be quick to send.
        return {**self.__dict__, "_pooled": {}}

    def __getitem__(self, index: int) -> MomentSample:
        """Return a query with its video.

        Raises:
            FeatureError: If the video's features cannot be used; also MissingFeatureError or
                FileError, whatever the store raises. The message names the video and the query.
        """
        item = self.annotations[index]
        try:
            features = self._clips(item.video_id, item.duration)
        except Exception as error:
            where = f"(video {item.video_id!r}, query {item.qid!r}: {item.query!r})"
            kind = type(error) if isinstance(error, TmapdiffError) else FeatureError
            text = str(error) if isinstance(error, TmapdiffError) else repr(error)
            raise kind(f"{text} {where}") from error
        return MomentSample(features, self._words[index], item)

    def _clips(self, video_id: str, duration: float) -> Tensor:
        """Return the features of the clips, in memory that is the caller's."""
        key = (video_id, duration)
        if key in self._pooled:
            return self._pooled[key].clone()
        features = self.store[video_id]
        check_shape(
            self.store.description, "features", features, "T D", {"D": self.store.feature_dim}
        )
        clips = pool_features(
            features.float(),
            self.num_clips,
            duration=duration,
            seconds_per_feature=self.store.seconds_per_feature,
        )
        if self.cache:
            self._pooled[key] = clips.clone()
        return clips


def collate_moments(samples: Sequence[MomentSample]) -> MomentBatch:
    """Make a batch of samples.

    Args:
        samples: Samples of one dataset, at least one.

    Raises:
        ArgumentError: If there is no sample.
        ShapeError: If the features of two samples differ in shape.
    """
    if len(samples) == 0:
        raise ArgumentError(message("collate_moments", "at least one sample", "none"))
    sizes = check_shape("collate_moments", "features", samples[0].features, "N D")
    for sample in samples:
        check_shape("collate_moments", "features", sample.features, "N D", sizes)
    items = [sample.annotation for sample in samples]
    return MomentBatch(
        features=torch.stack([sample.features for sample in samples]),
        words=pad_sequence([sample.words for sample in samples], batch_first=True),
        num_words=torch.tensor([len(sample.words) for sample in samples]),
        moments=pad_sequence(
            [torch.tensor(item.moments, dtype=torch.float32) for item in items], batch_first=True
        ),
        num_moments=torch.tensor([len(item.moments) for item in items]),
        clip_seconds=torch.tensor(
            [item.duration / sizes["N"] for item in items], dtype=torch.float32
        ),
        durations=torch.tensor([item.duration for item in items], dtype=torch.float32),
        qids=[item.qid for item in items],
        video_ids=[item.video_id for item in items],
        queries=[item.query for item in items],
    )


def _encoded(vocabulary: Vocabulary, item: Annotation) -> Tensor:
    try:
        return vocabulary.encode(item.query)
    except ArgumentError as error:
        raise ArgumentError(f"{error} (video {item.video_id!r}, query {item.qid!r})") from error
