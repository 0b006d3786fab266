"""A training step, peak memory, and training and sampling compared with another checkout."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed_cases import Candidate, Case, Contest, MemoryCase, Run, TimedCase
from timing import Effort, seconds_elsewhere
from torch import Tensor

import tmapdiff
from speed_suites.setting import (
    AUTO,
    CLIP_CHANNELS,
    REFERENCE,
    STEPS,
    VOCABULARY_SIZE,
    WORDS,
    Setting,
    backends,
    compiled,
    each_size,
    inference,
    make_localizer,
    make_trainable,
    map_features,
)


def cases(setting: Setting) -> Iterator[Case]:
    """Measure a step in each dtype; with a baseline, also compare epochs and sampling."""
    name = setting.preset_name(cpu="tiny", quick="nano")
    batches = setting.training_batch_sizes()
    for shape, dtype, build in each_size(setting, name, batches, _steps):
        yield TimedCase("training", "step", shape, dtype, build)
    effort = Effort(rounds=1 if setting.quick else 7, seconds=0, warm_up=0)
    for what in ("epoch", "ten-step sampling") if setting.baseline is not None else ():
        own = replace(setting, dtypes=[torch.float32])
        for shape, dtype, build in each_size(own, name, batches, partial(_checkouts, what)):
            case = TimedCase("training", f"{what} of two checkouts", shape, dtype, build)
            yield replace(case, reference="baseline", effort=effort)


# Forward, backward and optimizer, with weights in float32; other dtypes by autocast.


def _steps(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> Contest:
    model = make_trainable(name, setting.device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inputs = [draw_batch(setting, model.grid.num_clips, batch) for _ in range(3)]

    def step(loss: Any, given: Sequence[Tensor]) -> None:
        # As in the trainer, which checks values on the CPU beforehand.
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
    """Return an autocast context of a dtype."""
    return torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32)


def draw_batch(setting: Setting, num_clips: int, batch: int) -> Sequence[Tensor]:
    """Draw a batch, in the order of the arguments of `MomentLocalizer.loss`."""
    device = setting.device
    words = torch.randint(1, VOCABULARY_SIZE, (batch, WORDS), device=device)
    num_words = torch.full((batch,), WORDS)  # read on the CPU by the text encoder
    moments = torch.rand(batch, 2, device=device).sort(dim=1).values * (num_clips - 1)
    moments[:, 1] += 1
    return (
        setting.random(batch, num_clips, CLIP_CHANNELS),
        words,
        num_words,
        moments,
        torch.ones(batch, device=device),
    )


# Peak memory of sampling in few and many steps, and of training.


def memory_cases(setting: Setting) -> Iterator[Case]:
    name, batches = setting.preset_name(cpu="stack128"), setting.batch_sizes(gpu=(64,), cpu=(8,))
    for shape, dtype, build in each_size(setting, name, batches, _memory_of_sampling):
        yield MemoryCase("memory", "sampling", shape, dtype, build)
    # A small model on a CPU, as gradients of many weights would hide the memory of activations.
    name, batches = setting.preset_name(cpu="tiny", quick="nano"), setting.training_batch_sizes()
    for shape, dtype, build in each_size(setting, name, batches, _memory_of_training):
        yield MemoryCase("memory", "training, forward and backward", shape, dtype, build)


def _memory_of_sampling(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> list[Run]:
    model = make_localizer(name, setting.device, dtype)
    channels = model.decoder.config.feature_channels
    features = map_features(setting, model.grid, channels, batch, dtype)

    def sample(steps: int) -> None:
        with inference(AUTO):
            model.sample_maps(features, num_inference_steps=steps)

    return [Run("auto", {"steps": steps}, partial(sample, steps)) for steps in (1, 2, STEPS)]


def _memory_of_training(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> list[Run]:
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


# The trainer and the sampler of two checkouts, each turn in its own process. To work with old
# checkouts, the program uses only names of the first version, and that `save_checkpoint` is called
# after each epoch. It prints the shortest of several times after a warm-up.

_PROGRAM = """
import sys, tempfile, time, warnings
warnings.simplefilter("ignore")
import torch
from tmapdiff import PRESETS, ActionTimelineFeatures, MomentDataset, Trainer, TrainingConfig
from tmapdiff import Vocabulary
from tmapdiff.data import SyntheticActivities

what, preset, batch, device, clock, videos = sys.argv[1:]
preset, batch = PRESETS[preset], int(batch)
if clock == "process_time":
    torch.set_num_threads(1)
data = SyntheticActivities(num_videos=int(videos))
store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes)
vocabulary = Vocabulary.from_sentences(one.query for one in data.annotations)
clips = preset.grid["num_clips"]
dataset = MomentDataset(data.annotations, store, vocabulary, num_clips=clips)
torch.manual_seed(0)
model = preset.build(vocabulary_size=len(vocabulary), clip_channels=store.feature_dim)
times = []

def note():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times.append(getattr(time, clock)())

if what == "epoch":
    config = TrainingConfig(epochs=4, batch_size=batch)
    chosen = "cpu" if device == "cpu" else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, dataset, config, folder, device=chosen, show_progress=False)
        trainer.save_checkpoint = note
        trainer.train()
else:
    model.to(device).eval()
    features = torch.randn(batch, clips, store.feature_dim, device=device)
    words = torch.randint(1, len(vocabulary), (batch, 12), device=device)
    lengths, seconds = torch.full((batch,), 12), torch.ones(batch, device=device)
    for _ in range(8):
        model.localize(features, words, lengths, seconds, num_inference_steps=10)
        note()
print(min(later - sooner for sooner, later in zip(times, times[1:])))
"""


def _checkouts(what: str, setting: Setting, name: str, batch: int, dtype: torch.dtype) -> Contest:
    clock = "process_time" if setting.cpu_time else "perf_counter"
    videos = "4" if setting.quick else "60"
    arguments = (what, name, str(batch), setting.device.type, clock, videos)
    folders = {"baseline": str(setting.baseline), "auto": Path(tmapdiff.__file__).parents[1]}
    return Contest(
        [
            Candidate(
                backend,
                lambda folder: seconds_elsewhere(_PROGRAM, *arguments, folder=folder),
                [folder],
                times_itself=True,
            )
            for backend, folder in folders.items()
        ]
    )
