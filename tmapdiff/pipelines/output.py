"""What a pipeline returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from tmapdiff.errors import TmapdiffError
from tmapdiff.maps import MapGrid, MultiScaleMapSampler, map_saliency


@dataclass(frozen=True)
class LocalizedMoment:
    """A moment of a video that a query may describe.

    Attributes:
        start: Seconds at which it begins.
        end: Seconds at which it ends.
        score: How well it answers the query; more is better.
        spread: Standard deviation over the samples of its cell of the merged map; None for one
            sample.
    """

    start: float
    end: float
    score: float
    spread: float | None = None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        return f"{self.start:.1f} to {self.end:.1f} s (score {self.score:.2f}{spread})"


@dataclass(frozen=True)
class PackedMaps:
    """Maps of one query, (cells,) or (steps, cells); `num_clips` of the clips are video, or all.

    `target` is what they are an expectation of, as a function of the IoU.
    """

    grid: MapGrid
    maps: Tensor
    num_clips: int | None
    target: Callable[[Tensor], Tensor]

    def merge(self) -> Tensor:
        """Make the dense map, (N, N) or (steps, N, N), NaN where there is no candidate."""
        rows, clips, end = self._rows()
        dense, _ = MultiScaleMapSampler(self.grid).merge(self.grid.unpack(rows), clips)
        # Also where no window of a long video holds a moment.
        dense = dense.masked_fill(dense == -torch.inf, torch.nan)[:, :end, :end]
        return dense if self.maps.dim() == 2 else dense[0]

    def saliency(self) -> Tensor:
        """Compute how likely each clip of the video lies in the answer, (N,) or (steps, N)."""
        rows, clips, end = self._rows()
        found = map_saliency(rows, self.grid, clips, target=self.target)[:, :end]
        return found if self.maps.dim() == 2 else found[0]

    def _rows(self) -> tuple[Tensor, Tensor | None, int]:
        rows = self.maps.reshape(-1, self.maps.shape[-1])
        if self.num_clips is None:
            return rows, None, self.grid.num_clips
        return rows, torch.full((len(rows),), self.num_clips), self.num_clips


class _MadeWhenAsked(Sequence[Any]):
    """What is made of the maps of each query, when it is asked for.

    Attributes:
        packed: What it is made of; None for what could not be answered.
        as_numpy: Whether each is a NumPy array instead of a tensor.
    """

    def __init__(self, packed: Sequence["PackedMaps | None"], as_numpy: bool) -> None:
        self.packed = packed
        self._as_numpy = as_numpy

    def _make(self, packed: PackedMaps | None) -> Tensor:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(self.packed[index], self._as_numpy)
        made = self._make(self.packed[index])
        return made.numpy() if self._as_numpy else made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} queries)"


class MergedMaps(_MadeWhenAsked):
    """Merged maps of queries, each made when it is asked for: they grow with N squared.

    Attributes:
        packed: What they are made of; None for what could not be answered.
        as_numpy: Whether each is a NumPy array instead of a tensor.

    Shape:
        - each: (N, N), `[start clip, duration in clips - 1]`, NaN where there is no candidate;
          (steps, N, N) for several maps per query; (0, 0) for what could not be answered
    """

    def _make(self, packed: PackedMaps | None) -> Tensor:
        return torch.empty(0, 0) if packed is None else packed.merge()

    def saliency(self) -> "ClipSaliency":
        """How likely each clip lies in the answer, of each query."""
        return ClipSaliency(self.packed, self._as_numpy)


class ClipSaliency(_MadeWhenAsked):
    """How likely each clip lies in the answer to a query, each computed when it is asked for.

    Attributes:
        packed: The maps of which it is computed; None for what could not be answered.
        as_numpy: Whether each is a NumPy array instead of a tensor.

    Shape:
        - each: (N,), in [0, 1]; (steps, N) for several maps per query; (0,) for what could not be
          answered
    """

    def _make(self, packed: PackedMaps | None) -> Tensor:
        return torch.empty(0) if packed is None else packed.saliency()


@dataclass
class MomentLocalizationOutput(BaseOutput):
    """What a `MomentLocalizationPipeline` found.

    Attributes:
        moments: The best moments of each query, best first; with `answer="set"` all that there
            seem to be, possibly none.
        maps: The merged map of each query, on the CPU.
        clip_seconds: Seconds that a clip of each query's map lasts.
        durations: Seconds that each query's video lasts.
        steps: Merged clean maps of each query as predicted at each step, averaged over samples;
            None unless asked for.
        noisy_steps: Likewise, the noisy maps that the next step starts from, of the first sample.
        windows: Start and end in seconds of the windows that each query's video was searched in: no
            moment is longer. None if every video was searched as a whole.
        errors: Why each query could not be answered, or None if it was. Those that were not have an
            empty list of moments (or NaN), empty maps and NaN for seconds. None without
            `on_error="skip"`.
        videos: The video of each query; None unless `pairs` or a folder was asked.
        queries: The queries, one for each answer; likewise.
        present: How likely each query has a moment in its video; None unless `answer="set"`.

    Shape:
        - moments: lists of `LocalizedMoment`, or (Q, top_n, 4) with `output_type` "pt" or "np":
          start, end, score, spread; NaN where there are fewer, and for the spread of one sample
        - maps: each (N, N), `[start clip, duration in clips - 1]`, NaN where there is no candidate
        - steps, noisy_steps: each (steps, N, N)
    """

    moments: list[list[LocalizedMoment]] | Tensor | np.ndarray
    maps: MergedMaps
    clip_seconds: list[float]
    durations: list[float]
    steps: MergedMaps | None = None
    noisy_steps: MergedMaps | None = None
    windows: list[list[tuple[float, float]]] | None = None
    errors: list[TmapdiffError | None] | None = None
    videos: list[Any] | None = None
    queries: list[str] | None = None
    present: list[float] | None = None

    @property
    def saliency(self) -> ClipSaliency:
        """How likely each clip of each query's video lies in the answer: highlights.

        Clip n goes from `n * clip_seconds` to `(n + 1) * clip_seconds`; `resample_saliency` brings
        clips to another length. It is read off the maps (`map_saliency`), when it is asked for.

        Shape:
            - each: (N,), in [0, 1]; (0,) for a query that could not be answered
        """
        return self.maps.saliency()
