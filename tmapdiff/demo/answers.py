"""Answers for the page as JSON: moments, maps, samples, denoising steps."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmapdiff.models import AnswerKind
from tmapdiff.pipelines import MomentLocalizationPipeline
from tmapdiff.pipelines._batches import list_moments
from tmapdiff.pipelines._windows import join_windows
from tmapdiff.video import VideoFeatures

_MOMENTS = 5


def find_answer(
    pipeline: MomentLocalizationPipeline,
    video: VideoFeatures,
    query: str,
    *,
    steps: int,
    samples: int,
    seed: int,
    answer: AnswerKind = "ranked",
) -> str:
    """Query a pipeline, and return the answer as JSON for the page.

    `limits` are the scores at the ends of the color scale, and `samples` has the best moment of
    each sample. Maps are base64 of one byte per cell, by `[start, duration]`: 0 for no candidate,
    otherwise 1 to 255 over the limits.
    """
    options: dict[str, Any] = {"top_n": _MOMENTS, "answer": answer}
    if pipeline.localizer.is_generative:
        options["num_inference_steps"] = steps
    else:
        samples = 1
    drawn: list[Tensor] = []

    def keep_samples(_: Any, step: int, timestep: int, maps: dict[str, Tensor]) -> None:
        if step == steps - 1:  # after the last step, no noise is left
            drawn.append(maps["noisy"])

    found: Any = pipeline(
        video,
        query,
        num_samples=samples,
        generator=torch.Generator().manual_seed(seed),
        return_steps=pipeline.localizer.is_generative,
        callback_on_step_end=keep_samples if samples > 1 else None,
        **options,
    )
    merged = found.maps[0].numpy()
    clean = [] if found.steps is None else list(found.steps[0].numpy())
    noisy = [] if found.noisy_steps is None else list(found.noisy_steps[0].numpy())
    low, high = float(np.nanmin(merged)), float(np.nanmax(merged))
    document = {
        "query": query,
        "duration": found.durations[0],
        "windows": 1 if found.windows is None else len(found.windows[0]),
        "clip_seconds": found.clip_seconds[0],
        "clips": len(merged),
        "limits": [low, high],
        "map": _encode(merged, low, high),
        "saliency": [float(f"{one:.4g}") for one in found.saliency[0].tolist()],
        "moments": [vars(one) for one in found.moments[0]],
        "presence": None if found.presence is None else found.presence[0],
        "samples": _best_of_each(pipeline, drawn, samples, found) if drawn else [],
        "clean": [_encode(one, low, high) for one in clean],
        # Noise exceeds the limits, so that each noisy map is scaled by its own range.
        "noisy": [_encode(one, *np.nanquantile(one, [0.01, 0.99])) for one in noisy],
    }
    return json.dumps(document, allow_nan=False)


def _best_of_each(
    pipeline: MomentLocalizationPipeline, drawn: Sequence[Tensor], samples: int, found: Any
) -> list[dict[str, float | None]]:
    """Read the best moment from each sample."""
    # `drawn` has packed maps by sample: (1, cells) each; for a video in windows, (windows, cells)
    # for each batch of windows.
    packed, seconds = found.maps.packed[0], found.clip_seconds[0]
    maps = torch.stack([torch.cat(list(drawn[index::samples])) for index in range(samples)], dim=1)
    held = None
    if found.windows is None:
        maps = maps[0]
    else:
        windows = [
            (round(start / seconds), round(end / seconds)) for start, end in found.windows[0]
        ]
        maps, held = join_windows(maps, windows, pipeline.localizer.grid, packed.grid)
        held = held.expand(samples, -1)

    def repeated(value: Any) -> Tensor:
        return torch.full((samples,), value, device=maps.device)

    read = pipeline.localizer.read_moments(
        maps,
        repeated(seconds),
        grid=packed.grid,
        num_clips=repeated(packed.num_clips),
        top_n=1,
        held=held,
    )
    best = list_moments(read.ranked, [seconds] * samples, [found.durations[0]] * samples)
    return [vars(one) for (one,) in best]


def _encode(dense: np.ndarray, low: float, high: float) -> str:
    share = (dense - low) / max(float(high - low), 1e-9)
    levels = 1 + np.round(254 * np.clip(share, 0, 1))
    cells = np.where(np.isfinite(dense), levels, 0).astype(np.uint8)
    return base64.b64encode(cells.tobytes()).decode()
