"""A trainer in a process of its own, of any checkout, that trains an epoch when it is told to."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

# What it uses is as old as the first version: its public names, and that `save_checkpoint` is
# called after each epoch.
_PROGRAM = """
import logging, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from tmapdiff import PRESETS, ActionTimelineFeatures, MomentDataset, Trainer, TrainingConfig
from tmapdiff import Vocabulary
from tmapdiff.data import SyntheticActivities

preset, batch, device, videos, folder, clock = sys.argv[1:]
now = getattr(time, clock)
if clock == "process_time":
    torch.set_num_threads(1)
preset = PRESETS[preset]
data = SyntheticActivities(num_videos=int(videos))
store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes)
vocabulary = Vocabulary.from_sentences(one.query for one in data.annotations)
dataset = MomentDataset(data.annotations, store, vocabulary, num_clips=preset.grid["num_clips"])
torch.manual_seed(0)
model = preset.build(vocabulary_size=len(vocabulary), clip_channels=store.feature_dim)
config = TrainingConfig(epochs=10**6, batch_size=int(batch))
device = device if device == "cpu" else None
trainer = Trainer(model, dataset, config, folder, device=device, show_progress=False)

def answer(line):
    print(line, file=sys.__stdout__, flush=True)
    if not sys.stdin.readline():
        raise SystemExit

def report_epoch():
    global began
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    answer(now() - began)
    began = now()

trainer.save_checkpoint = report_epoch
answer(len(dataset))
began = now()
trainer.train()
"""

_PATIENCE = 30  # seconds, until a process that should end is ended


class TrainerProcess:
    """Trains a preset on made-up videos.

    Args:
        checkout: Folder that holds the `tmapdiff` to use.
        preset: Name of the preset.
        batch: Queries a step.
        device: Where.
        videos: Videos of the data set; each has about four queries.
        cpu_time: Whether to tell what one thread computes, not what passes meanwhile.

    It runs until `close`.

    Attributes:
        pairs: Queries an epoch.

    Raises:
        RuntimeError: If the process ends before its time.
    """

    def __init__(
        self,
        checkout: Path,
        preset: str,
        batch: int,
        device: torch.device,
        videos: int = 60,
        cpu_time: bool = False,
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        clock = "process_time" if cpu_time else "perf_counter"
        arguments = [preset, str(batch), device.type, str(videos), self._scratch.name, clock]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            cwd=checkout,  # where `-c` imports from
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.pairs = int(self._answer())
        except RuntimeError:
            self.close()
            raise

    def epoch(self) -> float:
        """Train an epoch, and tell the seconds that it took."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # which is how it learns that it is over
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._scratch.cleanup()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the trainer ended with exit status {self._process.wait()}")
        return line
