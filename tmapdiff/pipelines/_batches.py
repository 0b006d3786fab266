"""Queries with their videos on the way into the model, and what comes out of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tmapdiff.data.clips import fill_clips
from tmapdiff.maps import MultiScaleMapSampler
from tmapdiff.models import DenoisingStep, Localization, MapLocalizer
from tmapdiff.pipelines.output import LocalizedMoment, PackedMaps


@dataclass(frozen=True)
class Clips:
    """A video as the model reads it; `num_clips` is None when all videos have as many."""

    features: Tensor
    duration: float
    clip_seconds: float
    num_clips: int | None


class Batch:
    """Queries and their videos, on the model's device."""

    def __init__(
        self, clips: Sequence[Clips], words: Sequence[Tensor], localizer: MapLocalizer
    ) -> None:
        grid, each = localizer.grid, localizer.encoder.config.features_per_clip
        self.device = device = localizer.device
        self.num_clips: Tensor | None = None
        longest = grid.num_clips
        if clips[0].num_clips is not None:
            counts = [one.num_clips or 0 for one in clips]
            longest = max(longest, *counts)
            self.num_clips = torch.tensor(counts, device=device)
        multiple = grid.stride(grid.num_scales - 1)
        videos = {id(one): one for one in clips}
        filled = [fill_clips(one.features, longest, multiple, each) for one in videos.values()]
        places = {key: place for place, key in enumerate(videos)}
        self.videos = torch.stack(filled).to(device, localizer.dtype)  # each once
        self.video_of = torch.tensor([places[id(one)] for one in clips], device=device)
        self.words = pad_sequence(list(words), batch_first=True).to(device)
        self.num_words = torch.tensor([len(one) for one in words])  # the CPU is where it is read
        self.clip_seconds = torch.tensor([one.clip_seconds for one in clips], device=device)
        self.durations = torch.tensor([one.duration for one in clips], device=device)
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def features(self) -> Tensor:
        """Features of the video of each query."""
        return self.spread(self.videos)

    def spread(self, of_videos: Tensor) -> Tensor:
        """Give each query what is of its video."""
        if len(of_videos) == 1:
            return of_videos.expand(len(self), *of_videos.shape[1:])
        return of_videos[self.video_of]


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
    found: Localization,
    spread: Tensor | None,
    batch: Batch,
    clean: Tensor | None,
    noisy: Tensor | None,
) -> Iterator[Answer]:
    ranked, maps = found.ranked, found.maps.float().cpu()
    starts, ends = (one.tolist() for one in ranked.moments.unbind(-1))
    scores, valid = ranked.scores.tolist(), ranked.valid.tolist()
    spreads = None if spread is None else spread.tolist()
    for row, clips in enumerate(batch.clips):
        listed = [
            LocalizedMoment(
                start=starts[row][rank],
                end=ends[row][rank],
                score=score,
                spread=None if spreads is None else spreads[row][rank],
            )
            for rank, score in enumerate(scores[row])
            if valid[row][rank]
        ]
        packed = PackedMaps(found.grid, maps[row], clips.num_clips)
        steps = [
            None if one is None else PackedMaps(found.grid, one[row], clips.num_clips)
            for one in (clean, noisy)
        ]
        yield Answer(listed, clips, packed, *steps)


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
