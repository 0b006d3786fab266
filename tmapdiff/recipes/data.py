"""Data to train and evaluate localizers on: a data set on disk, or a synthetic one."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Self

from tmapdiff._core.checks import message
from tmapdiff.data import (
    SEGMENT_SECONDS,
    ActionTimelineFeatures,
    Annotation,
    AnnotationFormat,
    AnnotationSet,
    ConcatFeatureStore,
    FeatureStore,
    MomentDataset,
    Split,
    SyntheticActivities,
    SyntheticDiDeMo,
    Vocabulary,
    find_split,
    keep_consensus,
    open_feature_store,
)
from tmapdiff.data.charades import TIMELINE, check_charades_actions
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation import Protocol
from tmapdiff.maps import MapGrid
from tmapdiff.models import TransformersTextEncoder

_ENCODED_AT_ONCE = 256  # sentences per batch, which are padded to the longest
_HOLDOUT_SEED = 0  # The same videos are held out whatever the training's seed.


@dataclass(frozen=True)
class LocalizationData:
    """Training and test queries, and the features of their videos.

    Attributes:
        name: Name of the data set, for folders of results.
        train: Queries to train on.
        test: Queries to evaluate on.
        store: Features of the videos.
        protocol: Protocol of `evaluate`. With `didemo`, the grid has DiDeMo's 21 moments, and
            queries have the moments of all annotators.
        is_synthetic: Whether the data are synthetic.
        files: The annotation files of `train` and `test`; empty for synthetic data.
        is_held_out: Whether `test` has videos of the training part.
        word_features: Features of the words of all queries, as for `MomentDataset`. By default,
            words are looked up in a vocabulary.
    """

    name: str
    train: AnnotationSet
    test: AnnotationSet
    store: FeatureStore
    protocol: Protocol = "rank"
    is_synthetic: bool = False
    files: Mapping[str, Path] = field(default_factory=dict)
    is_held_out: bool = False
    word_features: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = [f"train: {_described(self.train)}"] if self.train.report.lines else []
        lines += [f"test: {self.evaluated_on}", f"features: {self.store.description}"]
        return "\n".join(lines)

    @property
    def evaluated_on(self) -> str:
        """Description of the queries to evaluate on: their number and origin."""
        return _described(self.test, ", held out of training" if self.is_held_out else "")

    @property
    def text_channels(self) -> int | None:
        """Channels of word features; None with a vocabulary."""
        if self.word_features is None:
            return None
        return next(iter(self.word_features.values())).shape[-1]

    def make_vocabulary(self) -> Vocabulary | None:
        """Build the vocabulary of the training queries; None if words are features."""
        if self.word_features is not None:
            return None
        return Vocabulary.from_sentences(pair.query for pair in self.train)

    @classmethod
    def make_up(cls, protocol: Protocol = "rank") -> Self:
        """Build a small synthetic data set of scripted activities for `protocol`."""
        kind = SyntheticDiDeMo if protocol == "didemo" else SyntheticActivities
        train, test = kind(split="train"), kind(split="test")
        store = ActionTimelineFeatures(
            {**train.videos, **test.videos},
            num_classes=kind.num_classes,
            # Less noise than in Charades' simulated features, as there is less training data.
            drop=0.0,
            jitter=0.5,
            noise=1.0,
        )
        return cls("synthetic", train.annotations, test.annotations, store, protocol, True)

    @classmethod
    def load(
        cls,
        train: str | os.PathLike[str] | None,
        test: str | os.PathLike[str] | None = None,
        *,
        features: Sequence[str | os.PathLike[str]],
        format: AnnotationFormat | None = None,
        test_split: Split = "test",
        seconds_per_feature: float | None = None,
        charades_root: str | os.PathLike[str] | None = None,
        protocol: Protocol | None = None,
    ) -> Self:
        """Load a data set.

        Args:
            train: File of the training queries, or folder with both parts; None to evaluate only.
            test: File of the queries to evaluate on, or folder. Defaults to `train`.
            features: As for `open_features`.
            format: As for `find_annotations`.
            test_split: Part of a folder to evaluate on.
            seconds_per_feature: As for `open_features`.
            charades_root: As for `open_features`. Defaults to the folder of the queries.
            protocol: Protocol of `evaluate`: for DiDeMo `didemo`, otherwise `rank`, the default, or
                `qvhighlights`.

        Raises:
            FileError: If a file is missing, ambiguous or cannot be read.
            AnnotationError, ConfigError: As the loader of the format.
            FeatureError, ArgumentError: As `open_features`.
            ArgumentError: If the parts have different formats, or the protocol does not suit them.
        """
        parts: dict[str, tuple[Any, Split]] = {
            "train": (train, "train"),
            "test": (train if test is None else test, test_split),
        }
        sources = {
            part: find_split(place, None if Path(place).is_file() else split, format)
            for part, (place, split) in parts.items()
            if place is not None
        }
        formats = [source.format for source in sources.values()]
        if len(set(formats)) > 1:
            expected = "training and test queries in one format"
            raise ArgumentError(message("LocalizationData", expected, " and ".join(formats)))
        protocol = protocol or ("didemo" if formats[0] == "didemo" else "rank")
        if (protocol == "didemo") != (formats[0] == "didemo"):
            expected = "protocol 'didemo' for DiDeMo, and only for DiDeMo"
            raise ArgumentError(
                message("LocalizationData", expected, f"{protocol!r} for {formats[0]}")
            )
        folder = charades_root or sources[next(iter(sources))].path.parent
        store = open_features(features, seconds_per_feature, charades_root=folder)
        if protocol == "didemo" and store.seconds_per_feature is None:
            store = open_features(features, SEGMENT_SECONDS)
        loaded = {part: source.load() for part, source in sources.items()}
        return cls(
            "charades" if formats[0] == "charades-sta" else formats[0],
            loaded.get("train", AnnotationSet(())),
            loaded["test"],
            store,
            protocol,
            files={part: source.path for part, source in sources.items()},
        )

    def encode_queries(self, encoder: TransformersTextEncoder) -> Self:
        """Encode all queries with a text `encoder`, each sentence as a single word.

        Raises:
            ArgumentError, CheckpointError: As `TransformersTextEncoder`.
        """
        pairs = (*self.train, *self.test)
        features = encode_queries(pairs, lambda queries: encoder(queries).sentences[:, None])
        return replace(self, word_features=features)

    def hold_out(self, fraction: float) -> Self:
        """Evaluate on a fixed share of the training videos instead, 0 < `fraction` < 1.

        Raises:
            ArgumentError: As `AnnotationSet.split_videos`.
        """
        train, test = self.train.split_videos(fraction, _HOLDOUT_SEED)
        files = dict.fromkeys(self.files, self.files["train"]) if self.files else {}
        return replace(self, train=train, test=test, files=files, is_held_out=True)

    def with_features_only(self) -> Self:
        """Drop videos without features; the reports count and list them."""
        train, test = (part.restrict_to(self.store) for part in (self.train, self.test))
        return replace(self, train=train, test=test)

    def limit(self, n: int | None) -> Self:
        """Keep the first `n` queries of each part, or all if `n` is None.

        Raises:
            ArgumentError: If `n` is not an integer >= 0.
        """
        if n is None:
            return self
        return replace(self, train=self.train.limit(n), test=self.test.limit(n))

    def make_train_set(
        self,
        grid: MapGrid,
        vocabulary: Vocabulary | None,
        clip_seconds: float | None = None,
        features_per_clip: int = 1,
    ) -> MomentDataset:
        """Build the training set; for DiDeMo, with the moment that annotators agree on.

        Args:
            grid: The model's grid.
            vocabulary: Vocabulary to encode the queries with; None with `word_features`.
            clip_seconds: Seconds per clip, to train on windows of long videos. By default, clips
                divide each video equally.
            features_per_clip: As for `MomentDataset`.

        Raises:
            ArgumentError: As `MomentDataset`.
        """
        part = keep_consensus(self.train) if self.protocol == "didemo" else self.train
        clips = {"clip_seconds": clip_seconds, "features_per_clip": features_per_clip}
        return self._make_set(part, grid, vocabulary, **clips)

    def make_test_set(
        self,
        grid: MapGrid,
        vocabulary: Vocabulary | None,
        clip_seconds: float | None = None,
        features_per_clip: int = 1,
    ) -> MomentDataset:
        """Build the test set, of whole videos.

        `grid`, `vocabulary`, `clip_seconds` and `features_per_clip` are as for `make_train_set`.
        """
        clips = {"clip_seconds": clip_seconds, "features_per_clip": features_per_clip}
        whole = clip_seconds is not None
        return self._make_set(self.test, grid, vocabulary, whole_videos=whole, **clips)

    def _make_set(
        self, part: AnnotationSet, grid: MapGrid, vocabulary: Vocabulary | None, **options: Any
    ) -> MomentDataset:
        return MomentDataset(
            part,
            self.store,
            vocabulary,
            grid.num_clips,
            clip_multiple=grid.stride(grid.num_scales - 1),
            word_features=self.word_features,
            **options,
        )


def _described(part: AnnotationSet, detail: str = "") -> str:
    counts = f"{len(part):,} queries of {len(part.video_ids):,} videos{detail}"
    if absent := sum(not item.moments for item in part):
        counts += f", {absent:,} without a moment, which metrics of moments ignore"
    return f"{counts}; {part.report}"


def encode_queries(
    pairs: Iterable[Annotation], encode: Callable[[list[str]], Iterable[Tensor]]
) -> dict[str, Tensor]:
    """Encode the sentences of all `pairs`, each once, in batches, for which `encode` is called."""
    queries = list(dict.fromkeys(pair.query for pair in pairs))
    parts = (queries[i : i + _ENCODED_AT_ONCE] for i in range(0, len(queries), _ENCODED_AT_ONCE))
    return {
        query: features
        for part in parts
        for query, features in zip(part, encode(part), strict=True)
    }


def open_features(
    places: Sequence[str | os.PathLike[str]],
    seconds_per_feature: float | None = None,
    *,
    charades_root: str | os.PathLike[str] | None = None,
) -> FeatureStore:
    """Open one feature store, or several and concatenate their features.

    Args:
        places: HDF5 files or folders of `.npy`, `.npz` or `.pt` files; or `timeline`, features
            simulated from Charades' action annotations.
        seconds_per_feature: As for `open_feature_store`.
        charades_root: Only for `timeline`: folder of Charades' files.

    Raises:
        ArgumentError: If `places` are empty, `timeline` is combined with others or has no folder,
            or stores differ in rate.
        FileError, FeatureError, AnnotationError: If features or annotations cannot be read.
    """
    who = "open_features"
    if not places:
        raise ArgumentError(message(who, "features", "none", "Pass a store, or timeline."))
    if TIMELINE in map(str, places):
        if len(places) > 1 or charades_root is None:
            got = "other stores" if len(places) > 1 else "none"
            expected = f"only {TIMELINE}, and the folder of Charades"
            raise ArgumentError(message(who, expected, got))
        check_charades_actions(charades_root)
        return ActionTimelineFeatures.from_charades(charades_root)
    stores = [open_feature_store(place, seconds_per_feature) for place in places]
    return stores[0] if len(stores) == 1 else ConcatFeatureStore(stores)
