"""Time and memory of a query about a long video, by the number of clips.

One query, random weights and features, two denoising steps. Ratios are of the time per clip,
relative to the fewest clips.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from speed_cases import Candidate, Case, Contest, MemoryCase, Run, TimedCase

from speed_suites.setting import Setting
from tmapdiff import PRESETS
from tmapdiff.models import Localization, MapLocalizer
from tmapdiff.presets import Preset

CLIPS = tuple(2**power for power in range(6, 15))
STEPS = 2
SIZES = {"vocabulary_size": 100, "clip_channels": 64}
TINY, PAPER = PRESETS["tiny"], PRESETS["paper"]
# The paper's maps and kernels, with few enough channels for an hour of video on two cores.
NARROW = replace(
    PAPER,
    encoder={**PAPER.encoder, "channels": 32, "word_channels": 32},
    decoder={**PAPER.decoder, "channels": 32, "time_channels": 32},
)
MODELS = {
    "preset tiny, NMS": (TINY, "nms"),
    "preset tiny, expected hits": (TINY, "expected-hits"),
    "17x17 kernels, A = 16, 32 channels, expected hits": (NARROW, "expected-hits"),
}


def cases(setting: Setting) -> Iterator[Case]:
    clips = CLIPS[:3] if setting.quick else CLIPS
    for name, (preset, ranking) in MODELS.items():
        shared = ("long-videos", name, {"steps": STEPS}, torch.float32)
        yield TimedCase(
            *shared, partial(_contest, preset, ranking, clips), reference=f"{clips[0]} clips"
        )
        yield MemoryCase(*shared, partial(_runs, preset, ranking, clips))


def ask(model: MapLocalizer, ranking: str, clips: int) -> Localization:
    """Localize one query in a video of `clips` clips."""
    random = torch.Generator().manual_seed(clips)
    return model.localize(
        torch.randn(1, clips, SIZES["clip_channels"], generator=random),
        torch.randint(2, 100, (1, 8), generator=random),
        torch.tensor([8]),
        torch.ones(1),
        num_clips=torch.tensor([clips]),
        ranking=ranking,
        num_inference_steps=STEPS,
        generator=[random],
    )


def _contest(preset: Preset, ranking: str, clips: tuple[int, ...]) -> Contest:
    run = partial(ask, preset.build(**SIZES).eval(), ranking)
    return Contest([Candidate(f"{count} clips", run, [count], items=count) for count in clips])


def _runs(preset: Preset, ranking: str, clips: tuple[int, ...]) -> list[Run]:
    model = preset.build(**SIZES).eval()
    return [Run(f"{count} clips", {}, partial(ask, model, ranking, count)) for count in clips]
