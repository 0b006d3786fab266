"""Batches of queries with their videos, and the answers to them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tmapdiff.data.clips import fill_clips
from tmapdiff.errors import TmapdiffError
from tmapdiff.maps import MapGrid, MultiScaleMapSampler, RankedMoments
from tmapdiff.models import Localization, MapLocalizer
from tmapdiff.pipelines._windows import Window, join_windows
from tmapdiff.pipelines.output import LocalizedMoment, PackedMaps


@dataclass(frozen=True)
class Clips:
    """Features of a video for the model.

    Attributes:
        grid: The grid of the video alone.
        num_clips: Its number of clips; None if it is that of the model's grid.
        windows: The windows to search; empty if the video is searched as a whole.
    """

    features: Tensor
    duration: float
    clip_seconds: float
    grid: MapGrid
    num_clips: int | None
    windows: tuple[Window, ...] = ()

    @property
    def parts(self) -> tuple[Window, ...]:
        """Its windows, or one window for the whole video."""
        return self.windows or ((0, self.grid.num_clips),)

    def spans(self) -> list[tuple[float, float]]:
        """Return start and end of `parts` in seconds."""
        if not self.windows:
            return [(0.0, self.duration)]
        ends = (min(end * self.clip_seconds, self.duration) for _, end in self.windows)
        starts = (start * self.clip_seconds for start, _ in self.windows)
        return list(zip(starts, ends, strict=True))


class Batch:
    """Queries and their videos, on the model's device."""

    def __init__(
        self, clips: Sequence[Clips], words: Sequence[Tensor], localizer: MapLocalizer
    ) -> None:
        self.localizer, self.clips, self.sentences = localizer, clips, words
        self.device = device = localizer.device
        self.counts = [video.num_clips or video.grid.num_clips for video in clips]
        self.num_clips: Tensor | None = None
        if any(video.num_clips is not None for video in clips):
            self.num_clips = torch.tensor(self.counts, device=device)
        self.grid = max((video.grid for video in clips), key=lambda grid: grid.num_clips)
        self.different = {id(video): video for video in clips}
        places = {key: place for place, key in enumerate(self.different)}
        self.video_of = torch.tensor([places[id(video)] for video in clips], device=device)
        self.words = pad_sequence(list(words), batch_first=True).to(device)
        self.num_words = torch.tensor([len(one) for one in words])  # read on the CPU
        self.clip_seconds = torch.tensor([video.clip_seconds for video in clips], device=device)

    def __len__(self) -> int:
        return len(self.clips)

    @cached_property
    def videos(self) -> Tensor:
        """Features of the distinct videos, padded to the clips of `grid`."""
        each = self.localizer.encoder.config.features_per_clip
        features = (video.features for video in self.different.values())
        filled = [fill_clips(one, self.grid.num_clips, 1, each) for one in features]
        return torch.stack(filled).to(self.device, self.localizer.dtype)

    def windows(self) -> list[tuple[int, Clips]]:
        """Return (query, features) of each window, or of each whole video.

        All queries of a window are adjacent, as they share its features.
        """
        each = self.localizer.encoder.config.features_per_clip
        grid, windows = self.localizer.grid, []
        for key, video in self.different.items():
            seconds = video.clip_seconds
            rows = [row for row, other in enumerate(self.clips) if id(other) == key]
            for start, end in video.parts:
                part = video.features[start * each : end * each]
                window = Clips(part, grid.num_clips * seconds, seconds, grid, None)
                windows += [(row, window) for row in rows]
        return windows

    @property
    def features(self) -> Tensor:
        return self.spread(self.videos)

    def spread(self, of_videos: Tensor) -> Tensor:
        """Repeat values of the distinct videos for their queries."""
        if len(of_videos) == 1:
            return of_videos.expand(len(self), *of_videos.shape[1:])
        return of_videos[self.video_of]


@dataclass(frozen=True)
class Drawn:
    """Predicted maps of the queries of a batch."""

    samples: Tensor  # (B, S, cells)
    clean: Tensor | None = None  # after each step, the mean over the samples: (B, steps, cells)
    noisy: Tensor | None = None  # after each step, of the first sample: (B, steps, cells)
    held: Tensor | None = None  # which cells lie in a window: (B, cells)

    @classmethod
    def join(cls, parts: Sequence["Drawn"], queries: Sequence[int], batch: Batch) -> "Drawn":
        """Join the maps of all windows of a batch; `queries` has the query of each window."""
        own, query_of = batch.localizer.grid, torch.tensor(queries)

        def joined(name: str) -> Any:
            maps = [getattr(part, name) for part in parts]
            if maps[0] is None:
                return None, None
            windows = torch.cat(maps)
            rows = [(query_of == row).to(windows.device) for row in range(len(batch))]
            each = [
                join_windows(windows[row], clips.parts, own, batch.grid)
                for row, clips in zip(rows, batch.clips, strict=True)
            ]
            return tuple(torch.stack(stacked) for stacked in zip(*each, strict=True))

        samples, held = joined("samples")
        return cls(samples, joined("clean")[0], joined("noisy")[0], held)


@dataclass(frozen=True)
class Answer:
    """The answer to a query, or the `error` that it got instead."""

    moments: list[LocalizedMoment] = field(default_factory=list)
    clips: Clips | None = None
    presence: float = math.nan  # probability that there is a moment, if the moments are a set
    maps: PackedMaps | None = None
    clean: PackedMaps | None = None
    noisy: PackedMaps | None = None
    error: TmapdiffError | None = None


def answers_of(found: Localization, batch: Batch, drawn: Drawn) -> Iterator[Answer]:
    seconds = [video.clip_seconds for video in batch.clips]
    durations = [video.duration for video in batch.clips]
    listed = list_moments(found.ranked, seconds, durations, spread_of(found, drawn.samples))
    maps, target = found.maps.float().cpu(), batch.localizer.objective.target
    presence = found.ranked.presence
    shares = [math.nan] * len(batch) if presence is None else presence.tolist()
    for row, clips in enumerate(batch.clips):
        packed: Any = [
            None if one is None else PackedMaps(found.grid, one[row], batch.counts[row], target)
            for one in (maps, drawn.clean, drawn.noisy)
        ]
        yield Answer(listed[row], clips, shares[row], *packed)


def list_moments(
    ranked: RankedMoments,
    clip_seconds: Sequence[float],
    durations: Sequence[float],
    spread: Tensor | None = None,
) -> list[list[LocalizedMoment]]:
    """Return the moments of each query; `spread` is (B, n).

    Seconds are computed in float64, as a float32 end might lie after the video's.
    """
    # Moments that were read off a map have clips.
    clips, valid = ranked.clips.tolist(), ranked.valid.tolist()  # type: ignore[union-attr]
    scores = ranked.scores.tolist()
    spreads = None if spread is None else spread.tolist()
    return [
        [
            LocalizedMoment(
                start=first * seconds,
                end=min(end * seconds, duration),
                score=scores[row][rank],
                spread=None if spreads is None else spreads[row][rank],
            )
            for rank, (first, end) in enumerate(clips[row])
            if valid[row][rank]
        ]
        for row, (seconds, duration) in enumerate(zip(clip_seconds, durations, strict=True))
    ]


def spread_of(found: Localization, samples: Tensor) -> Tensor | None:
    """Return the standard deviation over samples, (B, S, cells), at each moment, (B, n)."""
    batch, count, _ = samples.shape
    clips, num_clips = found.ranked.clips, found.num_clips
    if count == 1 or clips is None:
        return None
    each = None if num_clips is None else num_clips.repeat_interleave(count)
    candidates, scores = MultiScaleMapSampler(found.grid).merge_packed(samples.flatten(0, 1), each)
    # Candidates are sorted by start, then by end.
    after = found.grid.num_clips + 1
    keys, wanted = (one[..., 0] * after + one[..., 1] for one in (candidates, clips))
    places = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    chosen = scores.view(batch, count, -1).gather(2, places[:, None].expand(-1, count, -1))
    return chosen.float().std(dim=1)
