"""Peaks of memory: of sampling in few steps and in many, and of training."""

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
    make_trainable,
    map_features,
)
from speed_suites.training import autocast, draw_batch


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
        # On a CPU, of few weights: their gradients would hide what activations take.
        trained = setting.preset_name(cpu="tiny", quick="nano")
        for batch in setting.training_batch_sizes():
            yield MemoryCase(
                "memory",
                "training, forward and backward",
                {"preset": trained, "batch": batch},
                dtype,
                partial(_training, setting, trained, batch, dtype),
            )


def _sampling(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> list[Run]:
    model = make_localizer(name, setting.device, dtype)
    channels = model.decoder.config.feature_channels
    features = map_features(setting, model.grid, channels, batch, dtype)

    def sample(steps: int) -> None:
        with inference(AUTO):
            model.sample_maps(features, num_inference_steps=steps)

    return [Run("auto", {"steps": steps}, partial(sample, steps)) for steps in (1, 2, STEPS)]


def _training(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> list[Run]:
    model = make_trainable(name, setting.device, dtype)
    given = draw_batch(setting, model.grid.num_clips, batch)

    def step(checkpointing: bool) -> None:
        if checkpointing:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()
        with autocast(setting, dtype):
            loss = model.loss(*given)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return [
        Run("auto", {"activation_checkpointing": on}, partial(step, on)) for on in (False, True)
    ]
