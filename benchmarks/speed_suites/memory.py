"""Peaks of memory: of sampling in few steps and in many."""

from collections.abc import Iterator
from functools import partial

import torch
from speed_cases import Case, MemoryCase, Run

from speed_suites.setting import (
    AUTO,
    STEPS,
    Setting,
    inference,
    make_localizer,
    map_features,
)


def cases(setting: Setting) -> Iterator[Case]:
    """Measure peaks in each dtype and batch size."""
    name = setting.preset_name(cpu="stack128")
    for dtype in setting.dtypes:
        for batch in setting.batch_sizes(gpu=(64,), cpu=(8,)):
            yield MemoryCase(
                "memory",
                "sampling",
                {"preset": name, "batch": batch},
                dtype,
                partial(_sampling, setting, name, batch, dtype),
            )


def _sampling(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> list[Run]:
    model = make_localizer(name, setting.device, dtype)
    channels = model.decoder.config.feature_channels
    features = map_features(setting, model.grid, channels, batch, dtype)

    def sample(steps: int) -> None:
        with inference(AUTO):
            model.sample_maps(features, num_inference_steps=steps)

    return [Run("auto", {"steps": steps}, partial(sample, steps)) for steps in (1, 2, STEPS)]
