"""Simulated features from action annotations, for training without any video."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tmapdiff._core.arrays import features_bytes
from tmapdiff._core.checks import check_int, check_range, message
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.data.charades import NUM_CHARADES_CLASSES, CharadesVideo, load_charades_actions
from tmapdiff.data.sampling import generator_for
from tmapdiff.errors import ArgumentError, MissingFeatureError


class ActionTimelineFeatures:
    """A simulated action recognizer, as a feature store that needs no video and no download.

    **The features are simulated**: results on them only compare methods with each other. Never
    present them as results on I3D, VGG or other video features, and label every table.

    The action annotations of a video become a multi-hot track with one row per sample, with ones
    for the actions at its center. To imitate the errors of a recognizer, actions are dropped with
    probability `drop`, and their ends are shifted. A fixed random matrix projects the track to
    `feature_dim`; rows with an action are scaled to norm 1, and all rows get Gaussian noise.
    Features depend only on `seed` and the video id, and are computed in well under a millisecond.

    Args:
        videos: Duration and actions, by video id.
        num_classes: Number of action classes.
        feature_dim: Width D of the features.
        samples_per_second: Rows per second of video.
        drop: Probability that an action is dropped.
        jitter: Standard deviation in seconds of the shift of a start or end.
        noise: Approximate norm of the noise in a row; its standard deviation is `noise / sqrt(D)`.
        seed: Seed of the features.

    Raises:
        ArgumentError: If a number is out of range, or a video has an unknown action class.
    """

    def __init__(
        self,
        videos: Mapping[str, CharadesVideo],
        *,
        num_classes: int = NUM_CHARADES_CLASSES,
        feature_dim: int = 256,
        samples_per_second: float = 4.0,
        drop: float = 0.25,
        jitter: float = 1.5,
        noise: float = 2.0,
        seed: int = 0,
    ) -> None:
        who = "ActionTimelineFeatures"
        self.videos = dict(videos)
        self.num_classes = check_int(who, "num_classes", num_classes, at_least=1)
        self.feature_dim = check_int(who, "feature_dim", feature_dim, at_least=1)
        self.samples_per_second = check_range(
            who, "samples_per_second", samples_per_second, 0, open_low=True
        )
        self.seconds_per_feature = 1 / self.samples_per_second
        self.drop = check_range(who, "drop", drop, 0, 1)
        self.jitter = check_range(who, "jitter", jitter, 0)
        self.noise = check_range(who, "noise", noise, 0)
        self.seed = check_int(who, "seed", seed, at_least=0)
        for video_id, video in self.videos.items():
            for action_class, _, _ in video.actions:
                if not 0 <= action_class < self.num_classes:
                    expected = f"action classes in 0 to {self.num_classes - 1}"
                    raise ArgumentError(message(who, expected, f"{action_class} in {video_id!r}"))
        projection = generator_for("timeline projection", self.seed)
        shape = (self.num_classes, self.feature_dim)
        self._projection = torch.from_numpy(projection.standard_normal(shape, dtype=np.float32))

    @classmethod
    def from_charades(
        cls,
        root: str | os.PathLike[str],
        splits: Sequence[Literal["train", "test"]] = ("train", "test"),
        **settings: Any,
    ) -> "ActionTimelineFeatures":
        """Make features of Charades' videos from its annotation files.

        Args:
            root: Folder with `Charades_v1_train.csv` and `Charades_v1_test.csv`.
            splits: Splits to read.
            **settings: Other arguments of `ActionTimelineFeatures`.

        Raises:
            FileError, AnnotationError, ConfigError: As `load_charades_actions`.
            ArgumentError: If a setting is out of range.
        """
        videos: dict[str, CharadesVideo] = {}
        for split in splits:
            videos.update(load_charades_actions(root, split))
        return cls(videos, **settings)

    @property
    def description(self) -> str:
        """Name of the features in tables, labeled as simulated."""
        return (
            f"SIMULATED action timelines ({self.num_classes} classes, D {self.feature_dim}, "
            f"{self.samples_per_second:g}/s, drop {self.drop:g}, jitter {self.jitter:g} s, "
            f"noise {self.noise:g}, seed {self.seed})"
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of all features, for a file of them."""
        return {"description": self.description, "seconds_per_feature": self.seconds_per_feature}

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Ids of the videos with features."""
        return tuple(self.videos)

    def attributes_of(self, video_id: str) -> dict[str, Any]:
        """Return the attributes of video `video_id`, for a file of these features.

        Raises:
            MissingFeatureError: If the video has no annotations.
        """
        return {"duration": self._video(video_id).duration}

    def __repr__(self) -> str:
        return f"<{self.description}: {len(self.videos):,} videos>"

    def __contains__(self, video_id: object) -> bool:
        return video_id in self.videos

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video.

        Shape:
            - returns: (T, D) float32, `T = max(1, round(duration * samples_per_second))`

        Raises:
            MissingFeatureError: If the video has no annotations.
            SizeLimitError: If the features exceed the memory limit.
        """
        video = self._video(video_id)
        random = generator_for("timeline video", self.seed, video_id)
        # The order of draws does not depend on settings, so that changing `noise` or `drop` keeps
        # the other draws.
        dropped = random.random(len(video.actions)) < self.drop
        shifts = random.standard_normal((len(video.actions), 2)) * self.jitter
        num_samples = max(1, int(video.duration * self.samples_per_second + 0.5))
        declared = features_bytes((num_samples, self.feature_dim), 4)
        check_item_bytes(f"video {video_id!r}", "features", declared)
        noise = random.standard_normal((num_samples, self.feature_dim), dtype=np.float32)

        actions = np.array(video.actions, dtype=np.float64).reshape(-1, 3)
        starts, ends = (actions[:, 1:] + shifts).T
        centers = (np.arange(num_samples)[:, None] + 0.5) / self.samples_per_second
        active = (centers >= starts) & (centers < ends) & ~dropped
        classes = actions[:, 0].astype(np.int64)
        track = torch.zeros(num_samples, self.num_classes)
        rows, columns = active.nonzero()
        track[rows, classes[columns]] = 1

        # In torch: NumPy's threads spin while they wait for work and slow torch's down (6 times on
        # two cores).
        features = track @ self._projection
        # Empty rows stay exactly zero.
        norms = features.norm(dim=1, keepdim=True).where(track.any(dim=1, keepdim=True), 1)
        return features / norms + torch.from_numpy(noise) * (self.noise / self.feature_dim**0.5)

    def _video(self, video_id: str) -> CharadesVideo:
        if video_id not in self.videos:
            expected = f"one of the {len(self.videos):,} videos with action annotations"
            raise MissingFeatureError(message(self.description, expected, repr(video_id)))
        return self.videos[video_id]
