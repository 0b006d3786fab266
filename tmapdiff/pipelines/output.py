"""Output of pipelines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from tmapdiff.errors import TmapdiffError
from tmapdiff.maps import MapGrid, MultiScaleMapSampler, map_saliency


@dataclass(frozen=True)
class LocalizedMoment:
    """A moment of a video that may answer a query.

    Attributes:
        start: Start in seconds.
        end: End in seconds.
        score: How well it answers the query; higher is better.
        spread: Standard deviation of its cell of the merged map over the samples; None for one
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
    """Maps of one query, (cells,) or (steps, cells).

    The video has `num_clips` clips. `target` is the function of the IoU whose expectation the maps
    predict.
    """

    grid: MapGrid
    maps: Tensor
    num_clips: int
    target: Callable[[Tensor], Tensor]

    def merge(self) -> Tensor:
        """Compute the dense map, (N, N) or (steps, N, N), NaN where there is no candidate."""
        rows, clips = self._rows()
        dense, _ = MultiScaleMapSampler(self.grid).merge(self.grid.unpack(rows), clips)
        # -inf: candidates outside all windows of a long video.
        dense = dense.masked_fill(dense == -torch.inf, torch.nan)
        dense = dense[:, : self.num_clips, : self.num_clips]
        return dense if self.maps.dim() == 2 else dense[0]

    def saliency(self) -> Tensor:
        """Compute the probability that each clip lies in the answer, (N,) or (steps, N)."""
        rows, clips = self._rows()
        found = map_saliency(rows, self.grid, clips, target=self.target)[:, : self.num_clips]
        return found if self.maps.dim() == 2 else found[0]

    def _rows(self) -> tuple[Tensor, Tensor]:
        rows = self.maps.reshape(-1, self.maps.shape[-1])
        return rows, torch.full((len(rows),), self.num_clips)


class MergedMaps(Sequence[Any]):
    """Merged maps of queries, each computed on access, as their size is N squared.

    Made from those `packed`, None for a query that could not be answered. With `as_numpy`, each is
    a NumPy array instead of a tensor.

    Shape:
        - each: (N, N), `[start clip, duration in clips - 1]`, NaN where there is no candidate;
          (steps, N, N) for several maps per query; (0, 0) if it could not be answered
    """

    def __init__(self, packed: Sequence[PackedMaps | None], as_numpy: bool) -> None:
        self.packed = packed
        self._as_numpy = as_numpy

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(self.packed[index], self._as_numpy)
        packed = self.packed[index]
        merged = torch.empty(0, 0) if packed is None else packed.merge()
        return merged.numpy() if self._as_numpy else merged

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} queries)"

    def saliency(self) -> list[Any]:
        """Compute the probability that each clip lies in the answer, for each query.

        Shape:
            - each: (N,); (steps, N) for several maps per query; (0,) if it could not be answered
        """
        found = [torch.empty(0) if one is None else one.saliency() for one in self.packed]
        return [one.numpy() for one in found] if self._as_numpy else found


@dataclass
class MomentLocalizationOutput(BaseOutput):
    """Output of a `MomentLocalizationPipeline`.

    Attributes:
        moments: The best moments of each query, best first; with `answer="set"` its set of moments,
            possibly none.
        maps: The merged map of each query, on the CPU.
        clip_seconds: Seconds per clip of each query's map.
        durations: Length of each query's video in seconds.
        steps: Merged clean maps of each query after each step, averaged over samples. None without
            `return_steps`.
        noisy_steps: Merged noisy maps that the next step starts from, of the first sample. None
            without `return_steps`.
        windows: Start and end in seconds of the windows in which each query's video was searched;
            no moment is longer. None if all videos were searched as a whole.
        errors: The error of each query, or None if it was answered. Queries with an error have no
            moments (or NaN), empty maps and NaN for seconds. None without `on_error="skip"`.
        videos: The video of each answer. None unless `pairs` or a folder was passed.
        queries: The query of each answer. None unless `pairs` or a folder was passed.
        presence: Predicted probability that each query has a moment in its video. None unless
            `answer="set"`.

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
    presence: list[float] | None = None

    @cached_property
    def saliency(self) -> list[Any]:
        """Probability that each clip of each query's video lies in the answer: highlights.

        Clip n lasts from `n * clip_seconds` to `(n + 1) * clip_seconds`; `resample_saliency`
        converts to clips of another length. Computed from the maps (`map_saliency`) on access.
        """
        return self.maps.saliency()
