"""Simulated features made from action annotations: training without any video."""

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
    """A simulated action recogniser, as a feature store: no video and no download needed.

    **The features are simulated**: results on them compare methods with each other. Never show them
    as results on I3D, VGG or any other features of the video, and say so in every table.

    The action annotations of a video become a multi-hot track: one row for each sample, a one where
    an action is going on at the sample's centre. To make it as unsure as a recogniser, each action
    is left out with probability `drop`, and both its ends are moved. A fixed random matrix projects
    the track to `feature_dim`; rows with an action in them are scaled to norm 1, and every row
    gets Gaussian noise. All of it depends on `seed` and the video id alone: each run, process and
    model sees the same features. Nothing is kept: an access takes well under a millisecond.

    Args:
        videos: Duration and actions, by video id.
        num_classes: Action classes; the classes in `videos` are below it.
        feature_dim: Width D of the features.
        samples_per_second: Rows for each second of video.
        drop: Probability that an action is left out.
        jitter: Standard deviation, in seconds, of the shift of a start or an end.
        noise: Expected norm, about, of the noise in a row: `noise / sqrt(D)` a coordinate.
        seed: Another seed gives other features.

    Raises:
        ArgumentError: If a number is out of range, or a video has an action of a class that is not
            in 0 to `num_classes - 1`.
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
        """Make the features of Charades' videos from its annotation files alone.

        Args:
            root: Folder with `Charades_v1_train.csv` and `Charades_v1_test.csv`.
            splits: Which of the two to read.
            **settings: Arguments of `ActionTimelineFeatures`.

        Raises:
            FileError, AnnotationError, ConfigError: As `load_charades_actions`.
            ArgumentError: If a setting is out of range.
        """
        videos: dict[str, CharadesVideo] = {}
        for split in splits:
            videos.update(load_charades_actions(root, split))
        return cls(videos, **settings)

    @property
    def seconds_per_feature(self) -> float:
        """Seconds from one row to the next."""
        return 1 / self.samples_per_second

    @property
    def description(self) -> str:
        """One line for tables; it says that the features are simulated."""
        return (
            f"SIMULATED action timelines ({self.num_classes} classes, D {self.feature_dim}, "
            f"{self.samples_per_second:g}/s, drop {self.drop:g}, jitter {self.jitter:g} s, "
            f"noise {self.noise:g}, seed {self.seed})"
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """What a file of these features states: that they are simulated, and how."""
        return {"description": self.description, "seconds_per_feature": self.seconds_per_feature}

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The videos that there are features of."""
        return tuple(self.videos)

    def attributes_of(self, video_id: str) -> dict[str, Any]:
        """Return what a file of these features states of video `video_id`.

        Raises:
            MissingFeatureError: If there are no annotations of the video.
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
            MissingFeatureError: If there are no annotations of the video.
            SizeLimitError: If it is so long that they take more memory than an item may.
        """
        video = self._video(video_id)
        random = generator_for("timeline video", self.seed, video_id)
        # One order of the draws, whatever the settings: with another `noise` or `drop` a video
        # keeps its other draws, so that settings can be compared.
        dropped = random.random(len(video.actions)) < self.drop
        shifts = random.standard_normal((len(video.actions), 2)) * self.jitter
        num_samples = max(1, int(video.duration * self.samples_per_second + 0.5))
        declared = features_bytes((num_samples, self.feature_dim), 4)
        check_item_bytes(f"video {video_id!r}", "features", declared)
        noise = random.standard_normal((num_samples, self.feature_dim), dtype=np.float32)

        actions = np.array(video.actions, dtype=np.float64).reshape(-1, 3)
        starts, ends = (actions[:, 1:] + shifts).T
        centres = (np.arange(num_samples)[:, None] + 0.5) / self.samples_per_second
        active = (centres >= starts) & (centres < ends) & ~dropped
        classes = actions[:, 0].astype(np.int64)
        track = torch.zeros(num_samples, self.num_classes)
        rows, columns = active.nonzero()
        track[rows, classes[columns]] = 1

        # In torch: NumPy's product has threads of its own, which wait for work by spinning and keep
        # torch's from the processors (measured on two cores: 6 times slower).
        features = track @ self._projection
        # An empty row is exactly zero and stays so.
        norms = features.norm(dim=1, keepdim=True).where(track.any(dim=1, keepdim=True), 1)
        return features / norms + torch.from_numpy(noise) * (self.noise / self.feature_dim**0.5)

    def _video(self, video_id: str) -> CharadesVideo:
        if video_id not in self.videos:
            expected = f"one of the {len(self.videos):,} videos with action annotations"
            raise MissingFeatureError(message(self.description, expected, repr(video_id)))
        return self.videos[video_id]
