"""Time of the parts of a training step on the CPU, with one thread and with several.

Epochs of the trainer alternate between one thread and several. A part's time excludes the parts
within it; `backward` is autograd without the named gradients.
"""

import importlib
import pkgutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from speed_cases import Bench, Candidate, Case, Record, with_times

import tmapdiff.kernels
from speed_suites.setting import Setting, find_preset
from tmapdiff import ActionTimelineFeatures, MomentDataset, Trainer, TrainingConfig, Vocabulary
from tmapdiff.data import SyntheticActivities

Epochs = list[Counter[str]]  # seconds per part


def cases(setting: Setting) -> Iterator[Case]:
    name = setting.preset or ("nano" if setting.quick else "tiny")
    for batch in setting.training_batch_sizes():
        yield PartsCase(
            "parts",
            "parts of a training step",
            {"preset": name, "batch": batch},
            torch.float32,
            videos=2 if setting.quick else 60,
        )


@dataclass(frozen=True)
class PartsCase(Case):
    """The parts of a training step, with one thread and with several; times are per step."""

    videos: int  # size of the data set; each video has about four queries

    def _measure(self, bench: Bench) -> list[Record]:
        """Train as many epochs of each kind as there are rounds."""
        steps, one, several = self._train(bench.effort.rounds)
        records = []
        for part in sorted(several[-1], key=lambda part: -several[-1][part]):
            seconds = {
                f"{part}, {threads}": [epoch[part] / steps for epoch in epochs]
                for threads, epochs in (("one thread", one), ("several threads", several))
            }
            both = [Candidate(name, lambda given: None, []) for name in seconds]
            if all(seconds[both[0].backend]):  # 0: too short for the clock
                for candidate in both:
                    record = self._record(candidate.backend)
                    records.append(with_times(record, candidate, seconds, both[0], None))
        return records

    def _train(self, rounds: int) -> tuple[int, Epochs, Epochs]:
        """Return the steps per epoch, and the epochs with one thread and with several."""
        preset = find_preset(self.shape["preset"])
        data = SyntheticActivities(num_videos=self.videos)
        store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes)
        vocabulary = Vocabulary.from_sentences(one.query for one in data.annotations)
        dataset = MomentDataset(data.annotations, store, vocabulary, preset.grid["num_clips"])
        model = preset.build(vocabulary_size=len(vocabulary), clip_channels=store.feature_dim)
        config = TrainingConfig(epochs=2 * (rounds + 1), batch_size=self.shape["batch"])
        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder, Stopwatch() as stopwatch:
            trainer = AlternatingTrainer(
                model, dataset, config, Path(folder), device="cpu", show_progress=False
            )
            trainer.stopwatch = stopwatch
            watch_everything(stopwatch, trainer, model)
            try:
                trainer.train()
            finally:
                torch.set_num_threads(threads)
        epochs = trainer.epochs[2:]  # the first of each kind warms up
        for epoch in epochs:
            epoch["all"] = epoch.total()
        return -(-len(dataset) // self.shape["batch"]), epochs[1::2], epochs[::2]


class AlternatingTrainer(Trainer):
    """Trains epochs with several threads and one in turn, and records the times of parts."""

    stopwatch: "Stopwatch"

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Begin with several threads."""
        self.epochs: Epochs = []
        self.threads = (max(2, torch.get_num_threads()), 1)
        torch.set_num_threads(self.threads[0])
        return super().train(*args, **kwargs)

    def save_checkpoint(self) -> None:
        """Record the times of a finished epoch, instead of saving anything."""
        self.epochs.append(self.stopwatch.seconds.copy())
        torch.set_num_threads(self.threads[len(self.epochs) % 2])
        self.stopwatch.seconds.clear()


class Stopwatch(ExitStack):
    """Sums up the time of named parts, each without the parts within it."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.now = now
        self.seconds: Counter[str] = Counter()  # per part since the last clear
        self._within: list[float] = []

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Time a function of a class or module until the stopwatch exits."""
        timed: Any = self._timed(getattr(owner, attribute), name)
        if isinstance(vars(owner).get(attribute), staticmethod):
            timed = staticmethod(timed)
        self.enter_context(patch.object(owner, attribute, timed))

    def _timed(self, run: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            self._within.append(0.0)
            try:
                return run(*args, **kwargs)
            finally:
                passed = self.now() - began
                self.seconds[name] += passed - self._within.pop()
                if self._within:
                    self._within[-1] += passed

        return timed


def watch_everything(stopwatch: Stopwatch, trainer: Trainer, model: Any) -> None:
    for function, name in _gradient_functions():
        stopwatch.watch(function, "forward", name)
        stopwatch.watch(function, "backward", f"{name}, gradient")
    encoder = model.encoder
    for owner, attribute, name in (
        (type(trainer), "_train_epoch", "data"),
        (type(trainer), "_step", "trainer"),
        (torch.Tensor, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "clipping of gradients"),
        (torch.optim.AdamW, "step", "AdamW"),
        (type(trainer.ema), "update", "average of weights"),
        (type(model), "loss", "targets, noise, loss"),
        (type(encoder), "encode_video", "linear layers of clips"),
        (type(encoder.map_features), "forward", "map features"),
        (type(encoder.text_encoder), "forward", "text encoder"),
        (type(model.decoder), "forward", "decoder, what is not named"),
    ):
        stopwatch.watch(owner, attribute, name)


def _gradient_functions() -> Iterator[tuple[type, str]]:
    """Find the operations on maps that define their own gradients."""
    for module in pkgutil.walk_packages(tmapdiff.kernels.__path__, "tmapdiff.kernels."):
        name = module.name.removeprefix("tmapdiff.kernels.").removesuffix(".eager")
        if not name.endswith("triton"):
            for one in vars(importlib.import_module(module.name)).values():
                is_function = isinstance(one, type) and issubclass(one, torch.autograd.Function)
                if is_function and one.__module__ == module.name:
                    yield one, name
