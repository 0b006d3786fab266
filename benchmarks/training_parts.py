"""Where the time of a training step on the CPU goes, and what a second thread helps with.

Epochs of the trainer take turns with one thread and with several. A part's time is its own, without
that of the parts within it; `backward` is what autograd does besides the gradients that are named.

    python benchmarks/training_parts.py

With --beside, other programs want the cores meanwhile; GOMP_SPINCOUNT says how long threads wait
for each other busily:

    GOMP_SPINCOUNT=1000 python benchmarks/training_parts.py --beside 2
"""

import argparse
import importlib
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

import tmapdiff.kernels
from tmapdiff import (
    PRESETS,
    ActionTimelineFeatures,
    MomentDataset,
    Trainer,
    TrainingConfig,
    Vocabulary,
)
from tmapdiff.data import SyntheticActivities


class Stopwatch(ExitStack):
    """Adds up the time that named parts take, each without the parts within it.

    Args:
        now: Seconds since some moment.

    Attributes:
        seconds: Time of each part since it was last cleared.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.now = now
        self.seconds: Counter[str] = Counter()
        self._within: list[float] = []

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Time a function of a class or module until the stopwatch is left."""
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


class AlternatingTrainer(Trainer):
    """Trains epochs with one thread and with several by turns, and notes the times of parts."""

    def measure(self, stopwatch: Stopwatch, several: int) -> dict[int, list[Counter[str]]]:
        """Train, and give the times of epochs with one thread and with so many."""
        self.stopwatch, self.threads = stopwatch, (1, several)
        self.found: dict[int, list[Counter[str]]] = {1: [], several: []}
        before = torch.get_num_threads()
        torch.set_num_threads(several)
        self.train()
        torch.set_num_threads(before)
        return {threads: epochs[_WARM_UP:] for threads, epochs in self.found.items()}

    def save_checkpoint(self) -> None:
        """Note the times of an epoch that is over, instead of writing anything."""
        self.found[torch.get_num_threads()].append(self.stopwatch.seconds.copy())
        torch.set_num_threads(self.threads[self.progress.epoch % 2 - 1])
        self.stopwatch.seconds.clear()


_WARM_UP = 1  # epochs of each kind that do not count


def watch_everything(stopwatch: Stopwatch, trainer: Trainer, model: Any) -> None:
    """Time the parts of a training step."""
    for function, name in _gradient_functions():
        stopwatch.watch(function, "forward", name)
        stopwatch.watch(function, "backward", f"{name}, gradient")
    for owner, attribute, name in _parts(trainer, model):
        stopwatch.watch(owner, attribute, name)


def _gradient_functions() -> Iterator[tuple[type, str]]:
    """Find the operations on maps that have gradients of their own."""
    for module in pkgutil.walk_packages(tmapdiff.kernels.__path__, "tmapdiff.kernels."):
        name = module.name.removeprefix("tmapdiff.kernels.").removesuffix(".eager")
        if not name.endswith("triton"):
            for one in vars(importlib.import_module(module.name)).values():
                is_function = isinstance(one, type) and issubclass(one, torch.autograd.Function)
                if is_function and one.__module__ == module.name:
                    yield one, name


def _parts(trainer: Trainer, model: Any) -> Iterator[tuple[Any, str, str]]:
    yield type(trainer), "_train_epoch", "data"
    yield type(trainer), "_step", "trainer"
    yield torch.Tensor, "backward", "backward"
    yield torch.nn.utils, "clip_grad_norm_", "clipping of gradients"
    yield torch.optim.AdamW, "step", "AdamW"
    yield type(trainer.ema), "update", "average of weights"
    yield type(model), "loss", "targets, noise, loss"
    yield type(model.encoder), "encode_video", "linear layers of clips"
    yield type(model.encoder.map_features), "forward", "map features"
    yield type(model.encoder.text_encoder), "forward", "text encoder"
    yield type(model.decoder), "forward", "decoder, what is not named"


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Run programs that each want a core all the time."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=32, help="queries a step")
    parser.add_argument("--videos", type=int, default=60, help="made-up videos of the data set")
    parser.add_argument("--epochs", type=int, default=15, help="of each kind")
    parser.add_argument("--threads", type=int, default=max(2, torch.get_num_threads()))
    parser.add_argument("--beside", type=int, default=0, help="programs that want a core, too")
    args = parser.parse_args(arguments)
    if args.threads < 2:
        parser.error("--threads: expected two or more, to compare with one")

    preset = PRESETS[args.preset]
    data = SyntheticActivities(num_videos=args.videos)
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes)
    vocabulary = Vocabulary.from_sentences(one.query for one in data.annotations)
    num_clips = preset.grid["num_clips"]
    dataset = MomentDataset(data.annotations, store, vocabulary, num_clips=num_clips)
    torch.manual_seed(0)
    model = preset.build(vocabulary_size=len(vocabulary), clip_channels=store.feature_dim)
    config = TrainingConfig(epochs=2 * (args.epochs + _WARM_UP), batch_size=args.batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = AlternatingTrainer(
            model, dataset, config, Path(folder), device="cpu", show_progress=False
        )
        with busy_programs(args.beside), Stopwatch() as stopwatch:
            watch_everything(stopwatch, trainer, model)
            found = trainer.measure(stopwatch, args.threads)
    _print_table(found, steps=-(-len(dataset) // args.batch))


def _print_table(found: dict[int, list[Counter[str]]], steps: int) -> None:
    one, several = found
    times = {
        threads: {part: 1e3 / steps * median(one[part] for one in epochs) for part in epochs[-1]}
        for threads, epochs in found.items()
    }
    print(f"| part | {one} thread, ms a step | {several} threads | ratio |")
    print("| --- | --- | --- | --- |")
    for part in sorted(times[several], key=lambda part: -times[several][part]):
        before, after = times[one][part], times[several][part]
        print(f"| {part} | {before:.1f} | {after:.1f} | {after / before:.2f} |")
    before, after = (sum(times[threads].values()) for threads in (one, several))
    print(f"| all | {before:.1f} | {after:.1f} | {after / before:.2f} |")


if __name__ == "__main__":
    main()
