"""Training: a step of the localizer, and epochs of the trainer beside another checkout's."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed_cases import Candidate, Case, Contest, TimedCase
from torch import Tensor

import tmapdiff
from speed_suites.setting import (
    AUTO,
    CLIP_CHANNELS,
    REFERENCE,
    VOCABULARY_SIZE,
    WORDS,
    Setting,
    backends,
    compiled,
    make_trainable,
)
from speed_suites.trainer_process import TrainerProcess

Batch = Sequence[Tensor]


def cases(setting: Setting) -> Iterator[Case]:
    """Measure a step in each dtype, and epochs if there is a baseline."""
    name = setting.preset_name(cpu="tiny")
    batches = setting.training_batch_sizes()
    for dtype in setting.dtypes:
        for batch in batches:
            yield TimedCase(
                "training",
                "step",
                {"preset": name, "batch": batch},
                dtype,
                partial(_steps, setting, name, batch, dtype),
            )
    if setting.baseline is not None and setting.dtypes[0] == torch.float32:
        for batch in batches:
            yield TimedCase(
                "training",
                "epoch of the trainer",
                {"preset": name, "batch": batch},
                torch.float32,
                partial(_epochs, setting, setting.baseline, name, batch),
                reference="baseline",
            )


# Forward, backward and optimizer, of weights in float32; in other dtypes under autocast.


def _steps(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> Contest:
    model = make_trainable(name, setting.device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inputs = [draw_batch(setting, model.grid.num_clips, batch) for _ in range(3)]

    def step(loss: Any, given: Batch) -> None:
        # As in the trainer, which checks values on the CPU, before they are sent.
        with model.without_checks(), autocast(setting, dtype):
            value = loss(*given)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    losses = {"reference": (model.loss, REFERENCE), "auto": (model.loss, AUTO)}
    if setting.compiled:
        losses["compiled"] = (compiled(model.loss), REFERENCE)
        losses["auto, compiled"] = (torch.compile(model.loss), AUTO)
    return Contest(
        [
            Candidate(backend, partial(step, loss), inputs, partial(backends, named), batch)
            for backend, (loss, named) in losses.items()
        ]
    )


def autocast(setting: Setting, dtype: torch.dtype) -> torch.autocast:
    """Compute in a dtype what can be."""
    return torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32)


def draw_batch(setting: Setting, num_clips: int, batch: int) -> Batch:
    """Draw a batch, in the order of the arguments of `MomentLocalizer.loss`."""
    device = setting.device
    words = torch.randint(1, VOCABULARY_SIZE, (batch, WORDS), device=device)
    num_words = torch.full((batch,), WORDS)  # on the CPU, where the text encoder reads it
    moments = torch.rand(batch, 2, device=device).sort(dim=1).values * (num_clips - 1)
    moments[:, 1] += 1
    return (
        setting.random(batch, num_clips, CLIP_CHANNELS),
        words,
        num_words,
        moments,
        torch.ones(batch, device=device),
    )


def _epochs(setting: Setting, baseline: Path, name: str, batch: int) -> Contest:
    ours = Path(tmapdiff.__file__).parents[1]
    with ExitStack() as started:
        candidates = []
        for backend, folder in (("baseline", baseline), ("auto", ours)):
            trainer = TrainerProcess(folder, name, batch, setting.device, cpu_time=setting.cpu_time)
            started.callback(trainer.close)
            candidates.append(
                Candidate(
                    backend,
                    lambda given: given.epoch(),
                    [trainer],
                    items=trainer.pairs,
                    times_itself=True,
                )
            )
        return Contest(candidates, close=started.pop_all().close)
