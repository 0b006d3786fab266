"""What each process of tests/training/test_several_processes.py does."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import crash_run
from helpers.training import make_dataset, make_model
from torch.utils.data import Subset

from tmapdiff import Trainer
from tmapdiff.errors import ArgumentError, CheckpointError
from tmapdiff.evaluation import evaluate
from tmapdiff.training import TrainingConfig


def train(
    folder: Path,
    batch_size: int,
    queries: int = 20,
    clip_seconds: float | None = None,
    resume: bool = False,
    **changes: Any,
) -> Trainer:
    dataset = make_dataset(8, clip_seconds=clip_seconds, clip_multiple=2)
    fields = {"epochs": 2, "seed": 1, "learning_rate": 1e-2, "heat_map_every": 9, **changes}
    config = TrainingConfig(batch_size=batch_size, **fields)
    model = make_model(dataset, dropout=0.0)
    if config.mixed_precision == "no":
        model.double()  # in which rounding is no excuse
    some = Subset(dataset, range(queries))
    some.store = dataset.store  # type: ignore[attr-defined]
    trainer = Trainer(
        model, some, config, folder, validation=dataset, validate_every=2, device="cpu"
    )
    if resume:
        trainer.resume()
    losses = []
    step = trainer._step
    trainer._step = lambda batch: losses.append(float(loss := step(batch))) or loss  # type: ignore[method-assign,func-returns-value]
    trainer.train()
    found = {"raw": trainer.raw_model.state_dict(), "ema": trainer.ema_model.state_dict()}
    found |= {"losses": torch.tensor(losses), "history": trainer.history}
    if trainer.accelerator.is_main_process:
        torch.save(found, folder / "found.pt")
    return trainer


def assert_trained_alike(two: dict[str, Any], one: dict[str, Any]) -> None:
    """Compare what two runs of `train` found, up to rounding."""
    assert len(two["losses"]) == len(one["losses"]) >= 4
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-6, atol=0)
    for which in ("raw", "ema"):
        assert two[which].keys() == one[which].keys()
        for name, value in one[which].items():
            # Adam divides by gradients: even one that is only a rounding error moves weights.
            torch.testing.assert_close(two[which][name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert two["history"][-1]["mIoU"] == pytest.approx(one["history"][-1]["mIoU"], rel=1e-4)


def evaluate_queries(folder: Path, queries: int) -> None:
    dataset = make_dataset(8)
    repeated = Subset(dataset, [index % len(dataset) for index in range(queries)])
    accelerator = Accelerator(cpu=True)
    model = make_model(dataset, dropout=0.0).double().eval()
    waits: list[int] = []

    def wait(count: int) -> None:
        waits.append(count)
        time.sleep(0.1)

    found = evaluate(model, repeated, batch_size=4, on_batch=wait, accelerator=accelerator)
    assert found.seconds > 0.1 * len(waits)  # not of the gathering alone
    result = {
        "qids": [one.qid for one in found.predictions],
        "windows": [one.windows for one in found.predictions],
        "metrics": found.metrics,
        "confidence": found.confidence.tolist(),
    }
    path = folder / f"process-{accelerator.process_index}.json"
    path.write_text(json.dumps(result))


def train_apart(folder: Path, changes: dict[str, Any]) -> None:
    """Let the first process alone find the run's checkpoints; each writes down its error."""
    trainer = crash_run.make_trainer(folder, **changes)
    if trainer.accelerator.is_main_process:
        trainer.resume()
    try:
        trainer.train()
    except CheckpointError as error:
        (folder / f"error-{trainer.accelerator.process_index}").write_text(str(error))


def train_in_shards(folder: Path, variables: dict[str, str], **options: Any) -> None:
    """Train with weights in shards, as the variables of a launch say; without any, in whole."""
    if variables:
        shard_on_cpus(variables, options.get("mixed_precision", "no"))
    trainer = train(folder, 4, **options)
    in_shards = [hasattr(one, "full_tensor") for one in trainer.model.parameters()]
    assert all(in_shards) if variables else not any(in_shards)
    if trainer.accelerator.is_main_process:
        trainer.ema_model.save_pretrained(folder / "model")


class _Spoilt(torch.autograd.Function):
    """A finite number whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan


def spoil_gradients_in_shards(folder: Path, variables: dict[str, str]) -> None:
    """Train with gradients that are not finite; each process writes down the error."""
    shard_on_cpus(variables, "no")
    trainer = crash_run.make_trainer(folder, batch_size=8)
    share = trainer._share_loss

    def spoilt(loss: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        weighted, mean = share(loss, batch)
        return _Spoilt.apply(weighted), mean

    trainer._share_loss = spoilt
    try:
        trainer.train()
    except ArgumentError as error:
        (folder / f"error-{trainer.accelerator.process_index}").write_text(str(error))


def shard_on_cpus(variables: dict[str, str], mixed_precision: str) -> None:
    """Let accelerate use FSDP, which it does on GPUs alone: only that question is skipped."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    os.environ.update(variables)
    state = Accelerator(cpu=True, mixed_precision=mixed_precision).state
    plugin = FullyShardedDataParallelPlugin()
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = plugin
