"""A short training run for processes that will be killed: what it does, and what it ends with."""

import hashlib
import json
import os
import signal
import time
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any

import torch
from helpers.processes import start_process as start
from helpers.training import before_steps, make_dataset, make_model

from tmapdiff import Trainer
from tmapdiff._core.files import written_beside
from tmapdiff.training import TrainingConfig

__all__ = ["start"]


def do_nothing() -> None:
    """Wait for the server to have imported everything."""


def train(folder: Path, changes: dict[str, Any], resume: bool = True) -> None:
    """Train to the end; each process writes down what came of it: `result-<rank>.json`."""
    settle()
    trainer = make_trainer(folder, **changes)
    if resume:
        trainer.resume()
    trainer.train()
    result = json.dumps(outcome(trainer))
    (folder / f"result-{trainer.accelerator.process_index}.json").write_text(result)


def train_slowly(folder: Path, changes: dict[str, Any], seconds: float = 0.1) -> None:
    """Train with steps that take so long; `started-<rank>` appears with the second."""
    settle()
    trainer = make_trainer(folder, **changes)

    def wait(_: Any) -> None:
        if trainer.progress.step:
            with written_beside(folder / f"started-{trainer.accelerator.process_index}") as new:
                new.write_text(str(os.getpid()))
        time.sleep(seconds)

    before_steps(trainer, wait)
    trainer.resume().train()


def settle() -> None:
    """Make a process of the server like one that was started from a shell."""
    torch.set_num_threads(1)
    # Workers are this process's children, not the server's: they notice its end.
    set_start_method("fork", force=True)
    # It is ignored in what a shell started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_trainer(folder: Path, **changes: Any) -> Trainer:
    """Make a trainer of windows, with dropout, moving averages and validation."""
    # The videos are longer than 8 clips of 2 seconds: windows are drawn.
    windows = make_dataset(8, clip_seconds=2.0)
    fields = {"epochs": 3, "batch_size": 8, "seed": 1, "heat_map_every": 100, **changes}
    return Trainer(
        make_model(windows),
        windows,
        TrainingConfig(**fields),
        folder,
        validation=make_dataset(8, clip_seconds=2.0, whole_videos=True, clip_multiple=2),
        device="cpu",
        show_progress=False,
    )


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Digests of everything that training changes, and the metrics of each epoch."""

    def digest(state: dict[str, Any]) -> str:
        sha = hashlib.sha256()
        for name, value in sorted(state.items()):
            sha.update(name.encode())
            if isinstance(value, dict):
                sha.update(digest({str(key): one for key, one in value.items()}).encode())
            elif isinstance(value, torch.Tensor):
                sha.update(value.detach().contiguous().cpu().numpy().tobytes())
            else:
                sha.update(repr(value).encode())
        return sha.hexdigest()

    scaler = trainer.accelerator.scaler
    return {
        "weights": digest(trainer.raw_model.state_dict()),
        "averages": digest(trainer.ema_model.state_dict()),
        "optimizer": digest(trainer.optimizer.state_dict()),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "step": trainer.progress.step,
        "history": trainer.history,
    }


def train_and_report(folder: Path, changes: dict[str, Any]) -> None:
    """Train, and write down the error that ends it: `error`. A lock is not waited for long."""
    import tmapdiff.training.trainer

    tmapdiff.training.trainer.SECONDS_OF_ORPHANS = 0.1
    try:
        train(folder, changes)
    except Exception as error:
        (folder / "error").write_text(f"{type(error).__name__}: {error}")
