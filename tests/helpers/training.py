"""Small trainings: data, a model of eight channels, and ways to stop them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tmapdiff import PRESETS, ActionTimelineFeatures, MomentDataset, Trainer, Vocabulary
from tmapdiff.data import SyntheticActivities
from tmapdiff.models import MapLocalizer
from tmapdiff.training import TrainingConfig

CONFIG = TrainingConfig(epochs=3, batch_size=8, seed=1, heat_map_every=10)


def make_dataset(videos: int = 6, split: str = "train", **options: Any) -> MomentDataset:
    data = SyntheticActivities(num_videos=videos, split=split)
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes, feature_dim=16)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.annotations)
    return MomentDataset(data.annotations, store, vocabulary, num_clips=8, **options)


def make_model(
    dataset: Any, *, baseline: bool = False, dropout: float = 0.1, **changes: Any
) -> MapLocalizer:
    torch.manual_seed(0)
    preset = replace(
        PRESETS["tiny"],
        grid={"num_clips": 8, "num_anchors": 4, "num_scales": 2},
        encoder={"channels": 8, "word_channels": 8, "num_text_layers": 1, "dropout": dropout},
        decoder={"channels": 8, "time_channels": 8, "kernel_sizes": [3], "dropout": dropout},
    )
    vocabulary = getattr(dataset, "dataset", dataset).vocabulary
    fields = {"vocabulary_size": len(vocabulary), "clip_channels": 16, **changes}
    if not baseline:
        return preset.build(**fields)
    return replace(preset, decoder={"kernel_sizes": [3]}).build_ms2dtan(**fields)


def make_trainer(
    dataset: Any,
    folder: Path,
    config: TrainingConfig = CONFIG,
    model: MapLocalizer | None = None,
    **options: Any,
) -> Trainer:
    """Make the trainer of a run of its own: accelerate allows one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    options = {"show_progress": False, "device": "cpu", **options}
    return Trainer(model or make_model(dataset), dataset, config, folder, **options)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    states = {"raw": trainer.raw_model.state_dict(), "ema": trainer.ema_model.state_dict()}
    return {f"{which}.{k}": v.clone() for which, state in states.items() for k, v in state.items()}


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Interrupted(Exception):
    """What ends a training in the middle."""


def interrupt_after(trainer: Trainer, epochs: int) -> Trainer:
    """Train, and end with the checkpoint after some epochs."""
    save = trainer.save_checkpoint

    def save_then_stop() -> None:
        save()
        if trainer.progress.epoch == epochs:
            raise Interrupted

    trainer.save_checkpoint = save_then_stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.train()
    return trainer


def stop_at_step(trainer: Trainer, step: int) -> Trainer:
    """Train, save after a step, and end there."""
    is_due = trainer._is_checkpoint_due

    def save_then_stop() -> bool:
        if trainer.progress.step == step:
            trainer.save_checkpoint()
            raise Interrupted
        return is_due()

    trainer._is_checkpoint_due = save_then_stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.train()
    return trainer


def before_steps(trainer: Trainer, look: Any) -> None:
    """Call a function with each batch, before the trainer takes a step with it."""
    step = trainer._step

    def looked_at(batch: Any) -> torch.Tensor:
        look(batch)
        return step(batch)

    trainer._step = looked_at  # type: ignore[method-assign]


def give_scaler(trainer: Trainer) -> Trainer:
    """Give a gradient scaler, as accelerate does on GPUs."""
    scaler = torch.amp.GradScaler("cpu")
    trainer.accelerator.scaler = scaler
    trainer.optimizer.__setstate__({"scaler": scaler})
    return trainer
