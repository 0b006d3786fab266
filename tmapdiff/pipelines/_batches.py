"""Queries with their videos on the way into the model, and what comes out of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tmapdiff.data.clips import fill_clips
from tmapdiff.maps import MapGrid, MultiScaleMapSampler, RankedMoments
from tmapdiff.models import DenoisingStep, Localization, MapLocalizer
from tmapdiff.pipelines._windows import Window, join_windows
from tmapdiff.pipelines.output import LocalizedMoment, PackedMaps


@dataclass(frozen=True)
class Clips:
    """A video as the model reads it.

    Attributes:
        features: Features of its clips.
        duration: Seconds it lasts.
        clip_seconds: Seconds a clip lasts.
        grid: The grid that it would have alone.
        num_clips: Its clips; None if they are as many as the model's grid has.
        windows: The windows that it is searched in; none if it is searched as a whole.
    """

    features: Tensor
    duration: float
    clip_seconds: float
    grid: MapGrid
    num_clips: int | None
    windows: tuple[Window, ...] = ()

    @property
    def parts(self) -> tuple[Window, ...]:
        """Its windows; a whole video is its only one."""
        return self.windows or ((0, self.grid.num_clips),)

    def spans(self) -> list[tuple[float, float]]:
        """Start and end of its windows in seconds; a whole video is its only window."""
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
        self.device = device = localizer.device
        self.counts: list[int | None] = [None] * len(clips)
        self.num_clips: Tensor | None = None
        if any(one.num_clips is not None for one in clips):
            counts = [one.num_clips or one.grid.num_clips for one in clips]
            self.counts, self.num_clips = [*counts], torch.tensor(counts, device=device)
        self.localizer = localizer
        self.grid = max((one.grid for one in clips), key=lambda grid: grid.num_clips)
        self.different = {id(one): one for one in clips}
        places = {key: place for place, key in enumerate(self.different)}
        self.video_of = torch.tensor([places[id(one)] for one in clips], device=device)
        self.sentences = words
        self.words = pad_sequence(list(words), batch_first=True).to(device)
        self.num_words = torch.tensor([len(one) for one in words])  # the CPU is where it is read
        self.clip_seconds = torch.tensor([one.clip_seconds for one in clips], device=device)
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    @cached_property
    def videos(self) -> Tensor:
        """Features of the videos, each once, filled up to the clips of `grid`."""
        each = self.localizer.encoder.config.features_per_clip
        filled = [
            fill_clips(one.features, self.grid.num_clips, 1, each)
            for one in self.different.values()
        ]
        return torch.stack(filled).to(self.device, self.localizer.dtype)

    def windows(self) -> list[tuple[int, Clips]]:
        """Query and features of each window, in order; a whole video is its only window.

        Queries of one video stand side by side: they share the features of its windows.
        """
        each = self.localizer.encoder.config.features_per_clip
        grid = self.localizer.grid
        found = []
        for key, video in self.different.items():
            rows = [row for row, one in enumerate(self.clips) if id(one) == key]
            for start, end in video.parts:
                part = video.features[start * each : end * each]
                seconds = video.clip_seconds
                window = Clips(part, grid.num_clips * seconds, seconds, grid, None)
                found += [(row, window) for row in rows]
        return found

    @property
    def features(self) -> Tensor:
        """Features of the video of each query."""
        return self.spread(self.videos)

    def spread(self, of_videos: Tensor) -> Tensor:
        """Give each query what is of its video."""
        if len(of_videos) == 1:
            return of_videos.expand(len(self), *of_videos.shape[1:])
        return of_videos[self.video_of]


@dataclass(frozen=True)
class Drawn:
    """What a model gave for the queries of a batch.

    Attributes:
        samples: Maps of each sample.
        clean: Maps that it believed in after every step, the mean over the samples; None unless
            asked for.
        noisy: Likewise, the noisy maps of the first sample.
        held: Which cells some window holds; None if videos are not searched in windows.

    Shape:
        - samples: (B, S, cells)
        - clean, noisy: (B, steps, cells)
        - held: (B, cells)
    """

    samples: Tensor
    clean: Tensor | None
    noisy: Tensor | None
    held: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence["Drawn"], queries: Sequence[int], batch: Batch) -> "Drawn":
        """Join what was drawn, in parts, of the windows of a batch; `queries` has that of each."""
        own = batch.localizer.grid

        def joined(name: str) -> Any:
            maps = [getattr(one, name) for one in parts]
            if maps[0] is None:
                return None, None
            windows, of = torch.cat(maps), torch.tensor(queries)
            found = [
                join_windows(
                    windows[(of == row).to(windows.device)],
                    clips.parts,
                    own,
                    batch.grid,
                )
                for row, clips in enumerate(batch.clips)
            ]
            return tuple(torch.stack(each) for each in zip(*found, strict=True))

        samples, held = joined("samples")
        return cls(samples, joined("clean")[0], joined("noisy")[0], held)


class Steps:
    """Maps after every step: the clean ones' mean over the samples, the first one's noisy ones."""

    def __init__(self) -> None:
        self._clean: list[Tensor] = []
        self._noisy: list[Tensor] = []
        self._count: list[int] = []

    def add(self, step: DenoisingStep) -> None:
        if step.index == len(self._clean):
            self._clean.append(step.clean)
            self._noisy.append(step.noisy)
            self._count.append(1)
        else:
            self._clean[step.index] = self._clean[step.index] + step.clean
            self._count[step.index] += 1

    def clean(self) -> Tensor | None:
        means = [one / count for one, count in zip(self._clean, self._count, strict=True)]
        return torch.stack(means, dim=1).float().cpu() if means else None

    def noisy(self) -> Tensor | None:
        return torch.stack(self._noisy, dim=1).float().cpu() if self._noisy else None


@dataclass(frozen=True)
class Answer:
    """What was found for one query."""

    moments: list[LocalizedMoment]
    clips: Clips
    maps: "PackedMaps"
    clean: "PackedMaps | None"
    noisy: "PackedMaps | None"


def answers_of(
    found: Localization, spread: Tensor | None, batch: Batch, drawn: Drawn
) -> Iterator[Answer]:
    maps = found.maps.float().cpu()
    listed = list_moments(
        found.ranked,
        [one.clip_seconds for one in batch.clips],
        [one.duration for one in batch.clips],
        spread,
    )
    for row, clips in enumerate(batch.clips):
        packed = PackedMaps(found.grid, maps[row], batch.counts[row])
        steps = [
            None if one is None else PackedMaps(found.grid, one[row], batch.counts[row])
            for one in (drawn.clean, drawn.noisy)
        ]
        yield Answer(listed[row], clips, packed, *steps)


def list_moments(
    ranked: RankedMoments,
    clip_seconds: Sequence[float],
    durations: Sequence[float],
    spread: Tensor | None = None,
) -> list[list[LocalizedMoment]]:
    """Give the moments of each query, in seconds that are computed as Python's numbers.

    In float32 an end might lie after the video's.

    Shape:
        - spread: (B, n)
    """
    # There are clips, as all was read off a map.
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
    """Compute the standard deviation, over samples, of the merged map at the moments found.

    Shape:
        - samples: (B, S, cells)
        - returns: (B, n); None of one sample
    """
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
