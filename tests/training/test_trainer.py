import copy
import hashlib
import json
import math
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.assertions import assert_close, refuses
from torch.utils.data import Subset

from tmapdiff import PRESETS, ActionTimelineFeatures, MomentDataset, Trainer, Vocabulary
from tmapdiff.data import SyntheticActivities, collate_moments
from tmapdiff.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FeatureError,
    FileError,
    MissingDependencyError,
)
from tmapdiff.evaluation import Evaluation
from tmapdiff.kernels._dispatch import choose_fastest
from tmapdiff.models import MapLocalizer, MomentLocalizer
from tmapdiff.training import TrainingConfig
from tmapdiff.training._host_copy import HostCopy

CONFIG = TrainingConfig(epochs=3, batch_size=8, seed=1, heat_map_every=10)


@pytest.fixture(scope="module")
def dataset() -> MomentDataset:
    data = SyntheticActivities(num_videos=6)
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes, feature_dim=16)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.annotations)
    return MomentDataset(data.annotations, store, vocabulary, num_clips=8)


@pytest.fixture(autouse=True)
def _separate_runs() -> None:
    # accelerate allows one precision a process; each test is a run of its own.
    AcceleratorState._reset_state(reset_partial_state=True)


def make_model(
    dataset: MomentDataset, objective: str = "mse-full", **changes: Any
) -> MomentLocalizer:
    torch.manual_seed(0)
    dataset = getattr(dataset, "dataset", dataset)
    tiny = PRESETS["tiny"]
    preset = replace(
        tiny,
        grid={"num_clips": 8, "num_anchors": 4, "num_scales": 2},
        encoder={"channels": 8, "word_channels": 8, "num_text_layers": 1, "dropout": 0.1},
        decoder={"channels": 8, "time_channels": 8, "kernel_sizes": [3], "dropout": 0.1},
    )
    size = {"vocabulary_size": len(dataset.vocabulary), "clip_channels": 16}
    return preset.build(objective=objective, **{**size, **changes})


def make_trainer(
    dataset: MomentDataset,
    folder: Path,
    config: TrainingConfig = CONFIG,
    model: MapLocalizer | None = None,
    **kwargs: object,
) -> Trainer:
    model = make_model(dataset) if model is None else model
    kwargs.setdefault("show_progress", False)
    return Trainer(model, dataset, config, folder, device="cpu", **kwargs)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    states = {"raw": trainer.raw_model.state_dict(), "ema": trainer.ema_model.state_dict()}
    return {f"{which}.{k}": v.clone() for which, state in states.items() for k, v in state.items()}


def assert_equal_weights(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Interrupted(Exception):
    pass


def interrupt_after(trainer: Trainer, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save = trainer.save_checkpoint

    def save_then_stop() -> None:
        save()
        if trainer.progress.epoch == epochs:
            raise Interrupted

    monkeypatch.setattr(trainer, "save_checkpoint", save_then_stop)
    with pytest.raises(Interrupted):
        trainer.train()


def test_features_of_words_train_as_their_indices_do(dataset, tmp_path):
    # One-hot features, and a linear layer of the embeddings: the same function of the sentences.
    vocabulary, size = dataset.vocabulary, len(dataset.vocabulary)
    features = {
        item.query: torch.eye(size)[vocabulary.encode(item.query)] for item in dataset.annotations
    }
    of_features = MomentDataset(
        dataset.annotations, dataset.store, None, num_clips=8, word_features=features
    )
    by_index = make_model(dataset)
    by_feature = make_model(dataset, encoder={"text_channels": size}, vocabulary_size=None)
    weights = by_index.state_dict()
    embedding = "encoder.text_encoder.embedding"
    weights[f"{embedding}.weight"] = weights[f"{embedding}.weight"].T
    weights[f"{embedding}.bias"] = torch.zeros(8)
    by_feature.load_state_dict(weights)
    # So small a step that the bias, which indices do not have, stays zero.
    config = replace(CONFIG, learning_rate=1e-12)
    histories = []
    for name, data, model in (("index", dataset, by_index), ("feature", of_features, by_feature)):
        torch.manual_seed(1)  # of dropout
        trainer = make_trainer(data, tmp_path / name, config, model)
        trainer.train()
        histories.append(torch.tensor([entry["loss"] for entry in trainer.history]))
    assert_close(*histories)
    assert histories[0].unique().numel() == config.epochs  # other timesteps and noise each time


def test_training_learns_and_moves_both_sets_of_weights(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path, replace(CONFIG, epochs=12, learning_rate=3e-3))
    before = weights(trainer)
    losses = []
    step = trainer._step
    trainer._step = lambda batch: losses.append(step(batch)) or losses[-1]
    trainer.train()
    per_epoch = torch.stack(losses).view(12, -1).mean(1)
    assert per_epoch[-3:].mean() < 0.8 * per_epoch[0]
    after = weights(trainer)
    for name in ("raw.decoder.decoders.0.head.weight", "ema.decoder.decoders.0.head.weight"):
        assert not torch.equal(before[name], after[name])
    assert not torch.equal(
        after["raw.decoder.decoders.0.head.weight"], after["ema.decoder.decoders.0.head.weight"]
    )


def test_training_leaves_models_in_evaluation_mode(dataset, tmp_path, monkeypatch):
    modes = []
    trainer = make_trainer(dataset, tmp_path / "whole", replace(CONFIG, epochs=1))
    step = trainer._step
    trainer._step = lambda batch: modes.append(trainer.raw_model.training) or step(batch)
    trainer.train()
    assert modes == [True] * len(modes) != []
    stopped = make_trainer(dataset, tmp_path / "stopped")
    interrupt_after(stopped, 1, monkeypatch)
    for one in (trainer, stopped):
        for model in (one.raw_model, one.ema_model):
            assert not any(part.training for part in model.modules())


def test_same_seed_gives_same_weights_and_another_seed_others(dataset, tmp_path):
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = make_trainer(dataset, tmp_path / name, replace(CONFIG, epochs=1, seed=seed))
        trainer.train()
        runs.append(weights(trainer))
    assert_equal_weights(runs[0], runs[1])
    head = "raw.decoder.decoders.0.head.weight"
    assert not torch.equal(runs[0][head], runs[2][head])


def test_worker_processes_change_nothing(dataset, tmp_path, monkeypatch):
    whole = make_trainer(dataset, tmp_path / "none")
    whole.train()
    workers = replace(CONFIG, num_workers=1)
    other = make_trainer(dataset, tmp_path / "one", workers)
    other.train()
    assert_equal_weights(weights(whole), weights(other))
    interrupt_after(make_trainer(dataset, tmp_path / "parts", workers), 1, monkeypatch)
    resumed = make_trainer(dataset, tmp_path / "parts", workers).resume()
    resumed.train()
    assert_equal_weights(weights(whole), weights(resumed))


def test_a_checkpoint_of_another_model_or_of_other_features_is_refused(
    dataset, tmp_path, monkeypatch
):
    interrupt_after(make_trainer(dataset, tmp_path), 1, monkeypatch)
    written = (tmp_path / "training.json").read_text()
    text = "Trainer: expected a checkpoint of the same run, with "
    with refuses(CheckpointError, f"{text}model.objective = 'bce-full', got 'mse-full'. Use"):
        make_trainer(dataset, tmp_path, model=make_model(dataset, "bce-full")).resume()
    wider = make_model(dataset)
    wider.register_to_config(nms_threshold=0.6)
    with refuses(CheckpointError, f"{text}model.nms_threshold = 0.6, got 0.49."):
        make_trainer(dataset, tmp_path, model=wider).resume()
    other = copy.copy(dataset)
    other.store = ActionTimelineFeatures({}, num_classes=3, feature_dim=16, seed=7)
    with refuses(CheckpointError, f"{text}features = 'SIMULATED action timelines"):
        make_trainer(other, tmp_path).resume()
    # A refused run has not touched the files of the other.
    assert (tmp_path / "training.json").read_text() == written


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("state", ["finished", "interrupted within an epoch"])
def test_training_in_a_used_folder_is_refused_and_loses_nothing(dataset, tmp_path, state):
    first = make_trainer(dataset, tmp_path)
    if state == "finished":
        first.train()
    else:
        stop_at_step(first, 2)
    before = contents(tmp_path)
    for another in (make_trainer(dataset, tmp_path), make_trainer(dataset, tmp_path)):
        with refuses(FileError, f"Trainer: expected no earlier run in {tmp_path}, got checkpoints"):
            another.train()
        assert contents(tmp_path) == before
    damaged = make_trainer(dataset, tmp_path)
    for path in damaged.checkpoints:
        (path / "model.safetensors").write_bytes(b"")
    several = len(damaged.checkpoints) > 1
    with (
        pytest.warns(UserWarning, match="is damaged") if several else nullcontext(),
        refuses(CheckpointError, "Trainer: cannot resume from "),
    ):
        damaged.resume()
    # Whoever goes on after that has not asked for it.
    with refuses(FileError, "Continue it with resume, replace it with overwrite=True, or use ano"):
        damaged.train()
    assert contents(tmp_path).keys() == before.keys()


def test_metrics_without_checkpoints_are_an_earlier_run_and_an_aborted_start_is_none(
    dataset, tmp_path, monkeypatch
):
    aborted = make_trainer(dataset, tmp_path)
    monkeypatch.setattr(aborted, "_step", lambda _: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            aborted.train()
    make_trainer(dataset, tmp_path).train()
    shutil.rmtree(tmp_path / "checkpoints")
    with refuses(FileError, f"expected no earlier run in {tmp_path}, got history.json. Continue"):
        make_trainer(dataset, tmp_path).train()


def test_a_new_run_does_not_go_on_from_an_old_one(dataset, tmp_path, monkeypatch):
    make_trainer(dataset, tmp_path).train()
    assert make_trainer(dataset, tmp_path).resume().progress.epoch == 3
    second = make_trainer(dataset, tmp_path, overwrite=True)

    def stop(_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(second, "_step", stop)
    with pytest.raises(Interrupted):
        second.train()
    assert make_trainer(dataset, tmp_path).resume().progress.epoch == 0


def test_one_precision_a_process(dataset, tmp_path):
    make_trainer(dataset, tmp_path)
    with refuses(ConfigError, "mixed_precision 'no', as in this process's first training, got 'bf"):
        make_trainer(dataset, tmp_path, replace(CONFIG, mixed_precision="bf16"))


@pytest.mark.parametrize("validation", [{}, {"validate_every": 2}])
@pytest.mark.parametrize("interrupted_after", [1, 2])
def test_resumed_run_equals_uninterrupted_run(
    dataset, tmp_path, monkeypatch, interrupted_after, validation
):
    if validation:
        validation = {"validation": dataset, **validation}
    whole = make_trainer(dataset, tmp_path / "whole", **validation)
    whole.train()

    first = make_trainer(dataset, tmp_path / "parts", **validation)
    interrupt_after(first, interrupted_after, monkeypatch)
    torch.manual_seed(12345)  # another process, with another random state
    second = make_trainer(dataset, tmp_path / "parts", **validation).resume()
    assert second.progress.epoch == interrupted_after
    second.train()
    assert_equal_weights(weights(whole), weights(second))
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_resume_without_checkpoint_starts_from_the_beginning(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path).resume()
    assert trainer.progress.epoch == 0


def test_resume_refuses_a_run_of_another_configuration(dataset, tmp_path, monkeypatch):
    interrupt_after(make_trainer(dataset, tmp_path), 1, monkeypatch)
    other = make_trainer(dataset, tmp_path, replace(CONFIG, learning_rate=0.5))
    with pytest.raises(
        CheckpointError, match=r"expected a checkpoint of the same run, with learning_rate = 0\.5"
    ):
        other.resume()


def learning_rate_at(step: int, epochs: int, trainer: Trainer) -> float:
    """Warm-up and cosine, from their definition."""
    config = trainer.config
    total = epochs * len(trainer.loader)
    rising = math.ceil(config.warmup * total)
    if step < rising:
        first = config.learning_rate / rising
        return first + (config.learning_rate - first) * step / rising
    return config.learning_rate * (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2


@pytest.mark.parametrize("stop", ["never", "between epochs", "within an epoch"])
def test_a_run_may_get_more_epochs(dataset, tmp_path, monkeypatch, capsys, stop):
    first, longer = make_trainer(dataset, tmp_path), replace(CONFIG, epochs=5)
    if stop == "never":
        first.train()
    elif stop == "between epochs":
        interrupt_after(first, 2, monkeypatch)
    else:
        stop_at_step(first, len(first.loader) + 1)
    done = first.progress.step
    second = make_trainer(dataset, tmp_path, longer, show_progress=True).resume()
    assert second.progress.step == done
    rates, step = [], second._step

    def record(batch: Any) -> torch.Tensor:
        rates.append(second.optimizer.param_groups[0]["lr"])
        return step(batch)

    second._step = record
    second.train()
    total = 5 * len(second.loader)
    assert rates == pytest.approx([learning_rate_at(s, 5, second) for s in range(done, total)])
    assert [entry["epoch"] for entry in second.history] == [1, 2, 3, 4, 5]
    said = capsys.readouterr().out
    assert f"a run of 3 epochs is extended to 5: from step {done} on, the learning rate" in said
    # From here on it is a run of five epochs, as exact as any.
    assert make_trainer(dataset, tmp_path, longer).resume().progress.step == total
    with refuses(CheckpointError, "expected a checkpoint of the same run, with epochs = 3, got 5."):
        make_trainer(dataset, tmp_path).resume()


def test_an_extended_run_that_is_interrupted_equals_one_that_is_not(dataset, tmp_path, monkeypatch):
    make_trainer(dataset, tmp_path / "whole").train()
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    longer = replace(CONFIG, epochs=5)
    whole = make_trainer(dataset, tmp_path / "whole", longer).resume()
    whole.train()
    interrupt_after(make_trainer(dataset, tmp_path / "parts", longer).resume(), 4, monkeypatch)
    second = make_trainer(dataset, tmp_path / "parts", longer).resume()
    second.train()
    assert_equal_weights(weights(whole), weights(second))


def test_resume_allows_what_does_not_change_the_result(dataset, tmp_path, monkeypatch):
    interrupt_after(make_trainer(dataset, tmp_path), 1, monkeypatch)
    other = make_trainer(dataset, tmp_path, replace(CONFIG, heat_map_every=3))
    assert other.resume().progress.epoch == 1


def test_resume_refuses_a_damaged_checkpoint(dataset, tmp_path, monkeypatch):
    trainer = make_trainer(dataset, tmp_path)
    interrupt_after(trainer, 1, monkeypatch)
    for file in trainer.checkpoints[-1].rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cannot resume from .*epoch-0001: [^\n]+$"):
        make_trainer(dataset, tmp_path).resume()


def give_scaler(trainer: Trainer) -> None:
    """Give a gradient scaler, as accelerate does on GPUs."""
    scaler = torch.amp.GradScaler("cpu")
    trainer.accelerator.scaler = scaler
    trainer.optimizer.__setstate__({"scaler": scaler})


def stop_at_step(trainer: Trainer, step: int) -> None:
    """Save after a step, and end there."""
    is_due = trainer._is_checkpoint_due

    def save_then_stop() -> bool:
        if trainer.progress.step == step:
            trainer.save_checkpoint()
            raise Interrupted
        return is_due()

    trainer._is_checkpoint_due = save_then_stop
    with pytest.raises(Interrupted):
        trainer.train()


class Scribbled:
    """A data set whose samples draw random numbers, as windows do."""

    def __init__(self, dataset: MomentDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        sample = self.dataset[index]
        return replace(sample, features=sample.features + 0.1 * torch.randn(8, 16))


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_run_goes_on_within_an_epoch(dataset, tmp_path, precision):
    config = replace(CONFIG, mixed_precision=precision)
    validation = {"validation": dataset, "validate_every": 2}
    whole = make_trainer(
        Scribbled(dataset), tmp_path / "whole", config, make_model(dataset), **validation
    )
    if precision == "fp16":
        give_scaler(whole)
    whole.train()
    steps = len(whole.loader)
    assert steps >= 3
    parts = tmp_path / "parts"
    # The second part in the same epoch as the first, the last with workers.
    for step, workers in ((steps + 1, 0), (steps + 2, 0), (3 * steps, 1)):
        torch.manual_seed(step)
        config = replace(config, num_workers=workers)
        trainer = make_trainer(Scribbled(dataset), parts, config, make_model(dataset), **validation)
        if precision == "fp16":
            give_scaler(trainer)
        trainer.resume()
        if step < 3 * steps:
            stop_at_step(trainer, step)
            assert trainer.checkpoints[-1].name == f"epoch-0001-step-{step:08d}"
    trainer.train()
    assert_equal_weights(weights(whole), weights(trainer))
    assert trainer.progress.step == whole.progress.step
    assert trainer.history == whole.history
    assert [entry["epoch"] for entry in trainer.history] == [1, 2, 3]
    assert "mIoU" in trainer.history[1]
    assert "mIoU" not in trainer.history[2]
    if precision == "fp16":
        assert trainer.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert json.loads((parts / "history.json").read_text()) == trainer.history


def test_checkpoints_by_steps_and_by_minutes(dataset, tmp_path):
    written: dict[str, list[str]] = {"steps": [], "minutes": [], "neither": []}
    changes = {"steps": {"checkpoint_steps": 2}, "minutes": {"checkpoint_minutes": 1e-9}}
    for name, seen in written.items():
        config = replace(CONFIG, epochs=1, keep_checkpoints=99, **changes.get(name, {}))
        trainer = make_trainer(dataset, tmp_path / name, config)
        trainer.train()
        seen += [path.name for path in trainer.checkpoints]
        steps = len(trainer.loader)
    within = [f"epoch-0000-step-{step:08d}" for step in range(1, steps)]
    assert steps >= 3
    assert written["minutes"] == [*within, "epoch-0001"]
    assert written["steps"] == [*within[1::2], "epoch-0001"]
    assert written["neither"] == ["epoch-0001"]


def test_the_last_good_checkpoint_is_used_and_the_damaged_one_named(dataset, tmp_path):
    whole = make_trainer(dataset, tmp_path / "whole")
    whole.train()
    trainer = make_trainer(dataset, tmp_path / "parts")
    stop_at_step(trainer, 2 * len(trainer.loader) + 1)
    earlier, newest = trainer.checkpoints
    with (newest / "optimizer.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\x00\x01\x02\x03")
    second = make_trainer(dataset, tmp_path / "parts")
    text = f"checkpoint is damaged; falling back to the previous one. {newest}: expected the files"
    with pytest.warns(UserWarning, match=re.escape(text) + ".*another optimizer.bin"):
        second.resume()
    assert second.progress.step == 2 * len(second.loader)
    second.train()
    assert not newest.exists()
    assert earlier.exists()
    assert_equal_weights(weights(whole), weights(second))
    assert second.history == whole.history


def test_the_best_checkpoint_stays_and_can_be_taken(dataset, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 5.0, 6.0])

    def judge(*_: object, **__: object) -> Evaluation:
        return Evaluation({"mIoU": 0.0, "Rank1@0.5": next(scores)}, (), 1.0, None, None)

    monkeypatch.setattr("tmapdiff.training.trainer.evaluate", judge)
    config = replace(CONFIG, epochs=5, best_metric="Rank1@0.5", keep_checkpoints=1)
    trainer = make_trainer(dataset, tmp_path, config, validation=dataset, validate_every=1)
    assert trainer.best_checkpoint is None
    trainer.train()
    assert [path.name for path in trainer.checkpoints] == ["epoch-0002", "epoch-0005"]
    assert trainer.best_checkpoint == trainer.checkpoints[0]
    best = make_trainer(dataset, tmp_path, config, validation=dataset, validate_every=1)
    best.resume(trainer.best_checkpoint)
    assert best.progress.epoch == 2
    assert [entry["Rank1@0.5"] for entry in best.history] == [10.0, 30.0]
    other = replace(config, best_metric="Rank@1")
    scores = iter([1.0])
    with refuses(ConfigError, "best_metric to be one of mIoU, Rank1@0.5, got 'Rank@1'"):
        make_trainer(dataset, tmp_path / "other", other, validation=dataset).train()


def test_an_epoch_that_was_validated_is_not_again(dataset, tmp_path, monkeypatch):
    validated = []
    validation = {"validation": dataset, "validate_every": 1}
    trainer = make_trainer(dataset, tmp_path, **validation)
    stop_at_step(trainer, len(trainer.loader) + 1)
    for path in trainer.checkpoints[1:]:
        shutil.rmtree(path)
    second = make_trainer(dataset, tmp_path, **validation).resume()
    validate = second._validate
    monkeypatch.setattr(
        second, "_validate", lambda bar: validated.append(second.progress.epoch) or validate(bar)
    )
    second.train()
    assert validated == [2, 3]


def test_logs_of_lost_steps_are_not_shown_twice(dataset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(CONFIG, keep_checkpoints=9)
    trainer = make_trainer(dataset, tmp_path, config)
    stop_at_step(trainer, 2 * len(trainer.loader) + 1)
    first = trainer.checkpoints[0]
    # Back to the end of the first epoch: the second's are logged again.
    assert first.name == "epoch-0001"
    second = make_trainer(dataset, tmp_path, config).resume(first)
    second.train()
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    steps = [event.step for event in log.Scalars("loss")]
    assert steps == [len(second.loader) * epoch for epoch in (1, 2, 3)]


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_checkpoints_stay(dataset, tmp_path, keep):
    trainer = make_trainer(dataset, tmp_path, replace(CONFIG, keep_checkpoints=keep))
    trainer.train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch-0002", "epoch-0003"][-keep:]
    assert json.loads((tmp_path / "training.json").read_text())["epochs"] == 3


def test_checkpoint_that_cannot_be_written_is_one_line(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path)
    (tmp_path / "checkpoints").write_text("a file where a folder must go")
    with pytest.raises(FileError, match=r"^cannot write .*epoch-0001: [^\n]+$"):
        trainer.train()


def test_output_folder_that_cannot_be_made_is_refused_before_training(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"^cannot write .*: Not a directory\.$"):
        make_trainer(dataset, tmp_path / "file" / "run")


def test_loss_that_is_not_finite_names_the_queries(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path)
    with torch.no_grad():
        trainer.raw_model.decoder.decoders[0].head.bias.fill_(torch.nan)
    with pytest.raises(ArgumentError, match=r"expected a finite loss, got nan at step 0, queries "):
        trainer.train()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(dataset, tmp_path, precision):
    config = replace(CONFIG, epochs=1, mixed_precision=precision)
    trainer = make_trainer(dataset, tmp_path, config)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(value.isfinite().all() for value in after.values())
    assert after["raw.decoder.decoders.0.head.weight"].dtype == torch.float32
    name = "raw.encoder.clip_encoder.weight"
    assert not torch.equal(before[name], after[name])


def test_stops_before_the_weights_take_a_loss_that_is_not_finite(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path)
    with torch.no_grad():
        trainer.raw_model.decoder.decoders[0].head.bias.fill_(torch.inf)
    before = weights(trainer)
    with pytest.raises(ArgumentError, match="expected a finite loss, got inf at step 0"):
        trainer.train()
    for name, value in weights(trainer).items():
        if "running" not in name and "num_batches" not in name:  # batch norm has seen the batch
            assert torch.equal(value, before[name]), name


def spoil_gradient(trainer: Trainer, steps: range, value: float) -> None:
    """Let the gradient of one weight be of a value in some steps."""
    weight = trainer.raw_model.decoder.decoders[0].head.weight

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, value) if trainer.progress.step in steps else gradient

    weight.register_hook(spoil)


# Found by the next step, before a checkpoint, and at the end of an epoch.
@pytest.mark.parametrize(
    ("step", "checkpoint_steps", "value"), [(1, None, math.nan), (1, 1, math.inf), (3, 1, math.nan)]
)
def test_gradient_that_is_not_finite_names_the_batch_and_spoils_nothing(
    dataset, tmp_path, step, checkpoint_steps, value
):
    trainer = make_trainer(dataset, tmp_path, replace(CONFIG, checkpoint_steps=checkpoint_steps))
    assert len(trainer.loader) == 4
    spoil_gradient(trainer, range(step, step + 1), value)
    batches, states = [], []
    take = trainer._step

    def record(batch):
        batches.append(batch)
        states.append(weights(trainer))
        return take(batch)

    trainer._step = record
    named = r"queries \d+ \(video [\w-]+\), .*"
    text = rf"expected a finite gradient, got one of norm \S+ at step {step}, {named}Lower"
    with pytest.raises(ArgumentError, match=text) as caught:
        trainer.train()
    for qid, video_id in zip(batches[step].qids, batches[step].video_ids, strict=True):
        assert f"{qid} (video {video_id})" in str(caught.value)
    # Neither the weights nor the checkpoints have taken it.
    for name, one in weights(trainer).items():
        if name.startswith("raw.") and "running" not in name and "num_batches" not in name:
            assert torch.equal(one, states[step][name]), name
    names = [path.name for path in trainer.checkpoints[-1:]]
    assert names == ([f"epoch-0000-step-{step:08d}"] if checkpoint_steps else [])
    resumed = make_trainer(dataset, tmp_path).resume()
    resumed.train()
    assert all(one.isfinite().all() for one in weights(resumed).values())


def test_half_precision_skips_gradients_that_overflow(dataset, tmp_path):
    config = replace(CONFIG, epochs=2, mixed_precision="fp16")
    trainer = make_trainer(dataset, tmp_path, config)
    give_scaler(trainer)
    spoil_gradient(trainer, range(1, 3), math.inf)
    states = []
    take = trainer._step

    def record(batch):
        states.append(weights(trainer))
        return take(batch)

    trainer._step = record
    trainer.train()
    name = "raw.encoder.clip_encoder.weight"
    assert torch.equal(states[1][name], states[2][name])
    assert torch.equal(states[2][name], states[3][name])
    assert not torch.equal(states[3][name], states[4][name])
    assert trainer.progress.skipped == 0
    assert trainer.accelerator.scaler.get_scale() == 2**14


def test_gradients_that_go_on_overflowing_end_training(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tmapdiff.training.trainer._MOST_SKIPPED_STEPS", 6)
    config = replace(CONFIG, mixed_precision="fp16")
    trainer = make_trainer(dataset, tmp_path, config)
    give_scaler(trainer)
    spoil_gradient(trainer, range(2, 99), math.inf)
    text = r"expected a finite gradient, got none in 7 steps, last at step 8, queries \d+ \(video "
    with pytest.raises(ArgumentError, match=text):
        trainer.train()
    assert trainer.checkpoints[-1].name == "epoch-0002"


def test_looking_at_loss_and_gradient_waits_for_no_more_than_the_forward_pass(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path)
    read = []

    class Watched(HostCopy):
        def read(self) -> list[float]:
            read.append(self)
            return super().read()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tmapdiff.training.trainer.HostCopy", Watched)
        loader = iter(trainer.loader)
        trainer._step(next(loader))
        assert len(read) == 1  # the loss: the gradient's norm is not read by its own step
        norm = trainer._unchecked.norm
        assert norm not in read
        trainer._step(next(loader))
        assert read[2] is norm
        assert read.index(norm) == 2


def test_features_that_are_not_finite_end_training_and_name_the_video(dataset, tmp_path):
    class Spoilt:
        """A store of one's own, which does not look at its features."""

        def __init__(self, store, video_id):
            self.store, self.video_id = store, video_id
            self.feature_dim, self.description = store.feature_dim, "my features"
            self.seconds_per_feature = store.seconds_per_feature

        def __getitem__(self, video_id):
            features = self.store[video_id].clone()
            if video_id == self.video_id:
                features[3] = torch.nan
            return features

    video_id = dataset.annotations[0].video_id
    store = Spoilt(dataset.store, video_id)
    spoilt = MomentDataset(dataset.annotations, store, dataset.vocabulary, num_clips=8)
    got = rf"NaN or infinity in 1 clips\. \(video '{video_id}', query"
    text = f"my features: expected finite features, got {got}"
    with pytest.raises(FeatureError, match=text):
        make_trainer(spoilt, tmp_path, model=make_model(dataset)).train()


def test_deterministic_runs_are_equal_and_choose_nothing_by_the_clock(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "tmapdiff.kernels._dispatch._measure", lambda *_: pytest.fail("asked the clock")
    )
    config = replace(CONFIG, epochs=1, deterministic=True)
    modes, runs = [], []
    for name in ("a", "b"):
        trainer = make_trainer(dataset, tmp_path / name, config)
        take = trainer._step

        def record(batch, take=take):
            modes.append((torch.are_deterministic_algorithms_enabled(), batch))
            # What the clock would be asked for, were it not for this mode.
            choose_fastest(
                "op", {"a": None, "b": None}, None, candidates=["a", "b"], key=f"{len(modes)}",
                run=lambda name: None, device=torch.device("cpu"),
            )  # fmt: skip
            return take(batch)

        trainer._step = record
        trainer.train()
        runs.append(weights(trainer))
        assert not torch.are_deterministic_algorithms_enabled()
    assert all(mode for mode, _ in modes)
    assert len(modes) == 2 * len(trainer.loader)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert_equal_weights(*runs)
    with refuses(CheckpointError, "with deterministic = False, got True."):
        make_trainer(dataset, tmp_path / "a", replace(CONFIG, epochs=1)).resume()


def test_batches_are_checked_before_they_are_moved(dataset, tmp_path):
    def spoil(batch):
        batch.moments[:] = batch.moments.flip(-1)
        return step(batch)

    trainer = make_trainer(dataset, tmp_path)
    step, trainer._step = trainer._step, spoil
    with pytest.raises(ArgumentError, match=r"IoUMapBuilder: expected 0 <= start < end"):
        trainer.train()
    # And evaluation checks for itself.
    assert trainer.raw_model.build_iou_maps.validate
    assert trainer.raw_model.encoder.text_encoder.validate


def one_step(dataset, folder, config, make) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = make_trainer(dataset, folder, config, model=make(dataset))
    gradients = {}

    def keep(*_: object) -> None:
        gradients.update(
            (name, one.grad.clone()) for name, one in trainer.raw_model.named_parameters()
        )

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    loss = trainer._step(next(iter(trainer.loader)))
    return loss.item(), gradients


def make_ms2dtan(dataset: MomentDataset) -> MapLocalizer:
    torch.manual_seed(0)
    preset = replace(
        PRESETS["tiny"],
        grid={"num_clips": 8, "num_anchors": 4, "num_scales": 2},
        encoder={"channels": 8, "word_channels": 8, "num_text_layers": 1, "dropout": 0.1},
        decoder={"kernel_sizes": [3]},
    )
    return preset.build_ms2dtan(vocabulary_size=len(dataset.vocabulary), clip_channels=16)


@pytest.mark.parametrize("make", [make_model, make_ms2dtan])
def test_activation_checkpointing_changes_no_bit(dataset, tmp_path, make):
    # With dropout: the second forward pass has to draw what the first drew.
    loss, gradients = one_step(dataset, tmp_path / "kept", CONFIG, make)
    checkpointing = replace(CONFIG, activation_checkpointing=True)
    again, others = one_step(dataset, tmp_path / "computed anew", checkpointing, make)
    assert again == loss
    assert_equal_weights(others, gradients)


def test_activation_checkpointing_keeps_less_for_the_gradient(dataset):
    batch = collate_moments([dataset[index] for index in range(8)])

    def bytes_kept(model: MapLocalizer) -> int:
        kept: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train().loss(
                batch.features, batch.words, batch.num_words, batch.moments, batch.clip_seconds
            )
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in kept}
        return sum(storage.nbytes() for storage in storages.values())

    model = make_model(dataset)
    most = bytes_kept(model)
    model.enable_gradient_checkpointing()
    assert bytes_kept(model) < 0.7 * most


def test_a_run_may_go_on_with_activation_checkpointing(dataset, tmp_path, monkeypatch):
    whole = make_trainer(dataset, tmp_path / "whole")
    whole.train()
    interrupt_after(make_trainer(dataset, tmp_path / "parts"), 1, monkeypatch)
    checkpointing = replace(CONFIG, activation_checkpointing=True)
    resumed = make_trainer(dataset, tmp_path / "parts", checkpointing).resume()
    resumed.train()
    assert_equal_weights(weights(whole), weights(resumed))


def trace_only(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Trace what is to be compiled, but make no code: that takes a minute, and a compiler."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compiled(self, **how, backend=backend)
    )
    torch._dynamo.reset()


# torch's compiler looks at the gradients of all that comes in.
of_compiler = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@of_compiler
@pytest.mark.parametrize("make", [make_model, make_ms2dtan])
def test_compiled_training_is_close(dataset, tmp_path, monkeypatch, make):
    trace_only(monkeypatch, "aot_eager")
    runs = {}
    for name, config in (("eager", CONFIG), ("compiled", replace(CONFIG, compile=True))):
        AcceleratorState._reset_state(reset_partial_state=True)
        model = make(dataset)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # compiled code draws other random numbers
        trainer = make_trainer(dataset, tmp_path / name, config, model=model)
        losses = [trainer._step(batch).item() for batch in trainer.loader]
        runs[name] = torch.tensor(losses), weights(trainer), trainer.raw_model.encoder.map_features
    assert_close(runs["compiled"][0], runs["eager"][0], torch.float32)
    assert runs["compiled"][1].keys() == runs["eager"][1].keys()
    assert runs["compiled"][2]._compiled_call_impl is not None
    assert runs["eager"][2]._compiled_call_impl is None


@of_compiler
def test_compiled_runs_are_saved_and_resumed(dataset, tmp_path, monkeypatch):
    trace_only(monkeypatch, "eager")
    config = replace(CONFIG, epochs=2, compile=True)
    whole = make_trainer(dataset, tmp_path / "whole", config, validation=dataset, validate_every=1)
    whole.train()
    interrupt_after(make_trainer(dataset, tmp_path / "parts", config), 1, monkeypatch)
    resumed = make_trainer(dataset, tmp_path / "parts", config).resume()
    resumed.train()
    assert_equal_weights(weights(whole), weights(resumed))
    for model in (whole.raw_model, whole.ema_model):
        model.save_pretrained(tmp_path / "model")
        loaded = type(model).from_pretrained(tmp_path / "model")
        assert_equal_weights(dict(loaded.state_dict()), dict(model.state_dict()))
    with refuses(CheckpointError, "with compile = False, got True."):
        make_trainer(dataset, tmp_path / "whole", replace(config, compile=False)).resume()


@pytest.mark.parametrize(
    ("options", "validated"),
    [({}, [1, 2, 3]), ({"validate_every": 2}, [2]), ({"validate_every": None}, [])],
)
def test_a_validation_set_is_evaluated_after_every_epoch_unless_told_otherwise(
    dataset, tmp_path, options, validated
):
    trainer = make_trainer(dataset, tmp_path, validation=dataset, **options)
    trainer.train()
    assert [entry["epoch"] for entry in trainer.history if "mIoU" in entry] == validated


def test_validation_writes_scalars_and_a_heat_map(dataset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(CONFIG, epochs=2, heat_map_every=2)
    trainer = make_trainer(dataset, tmp_path, config, validation=dataset, validate_every=1)
    trainer.train()
    (events,) = (tmp_path / "tensorboard").rglob("events.*")
    log = EventAccumulator(str(events))
    log.Reload()
    assert {"loss", "learning_rate", "Rank1@0.5", "mIoU"} <= set(log.Tags()["scalars"])
    assert len(log.Scalars("loss")) == 2
    assert len(log.Images("validation query")) == 1


def test_last_batch_of_one_query_is_left_out(dataset, tmp_path):
    one_left = replace(CONFIG, epochs=1, batch_size=len(dataset) - 1)
    trainer = make_trainer(dataset, tmp_path, one_left)
    assert len(trainer.loader) == 1
    trainer.train()


def test_data_set_of_one_query_is_refused(dataset, tmp_path):
    with pytest.raises(ArgumentError, match="expected queries in the data set to be an integer >="):
        make_trainer(Subset(dataset, [0]), tmp_path)


def test_learning_rate_warms_up_and_falls(dataset, tmp_path):
    config = replace(CONFIG, epochs=4, warmup=0.25)
    trainer = make_trainer(dataset, tmp_path, config)
    rates = []
    step = trainer._step

    def record(batch):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return step(batch)

    trainer._step = record
    trainer.train()
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert rates[peak] == pytest.approx(config.learning_rate)
    assert peak == math.ceil(config.warmup * len(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.1 * config.learning_rate


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("epochs", 0, "expected epochs to be an integer >= 1, got 0"),
        ("batch_size", 1.5, r"expected batch_size to be an integer >= 2, got 1\.5"),
        ("learning_rate", 0, r"expected learning_rate in \(0, inf\), got 0"),
        ("weight_decay", -1, r"expected weight_decay in \[0, inf\), got -1"),
        ("warmup", 2, r"expected warmup in \[0, 1\], got 2"),
        ("gradient_clip", float("nan"), r"expected gradient_clip in \(0, inf\), got nan"),
        ("ema_decay", 1.1, r"expected ema_decay in \[0, 1\], got 1\.1"),
        ("checkpoint_steps", 0, "expected checkpoint_steps to be an integer >= 1, got 0"),
        ("checkpoint_minutes", 0, r"expected checkpoint_minutes in \(0, inf\), got 0"),
        ("keep_checkpoints", 0, "expected keep_checkpoints to be an integer >= 1, got 0"),
        ("seed", -1, "expected seed to be an integer >= 0, got -1"),
        ("seed", 2**32, r"expected seed in \[0, 4\.29497e\+09\], got 4294967296"),
    ],
)
def test_config_refuses_numbers_out_of_range(field, value, text):
    with pytest.raises(ArgumentError, match=text):
        TrainingConfig(**{field: value})


def test_config_refuses_unknown_precision():
    with pytest.raises(ConfigError, match="expected mixed_precision to be one of no, fp16, bf16"):
        TrainingConfig(mixed_precision="fp8")


def test_missing_accelerate_names_the_extra(dataset, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tmapdiff\[train\]'"):
        make_trainer(dataset, tmp_path)


def test_a_checkpoint_of_a_stranger_runs_no_code(dataset, tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    trainer = make_trainer(dataset, tmp_path / "run")
    interrupt_after(trainer, 1, monkeypatch)
    checkpoint = trainer.checkpoints[-1]
    harm = checkpoint / "custom_checkpoint_0.pkl"
    torch.save(Payload(), harm)
    # A stranger makes digests, too.
    digests = json.loads((checkpoint / "digests.json").read_text())
    digests[harm.name] = hashlib.sha256(harm.read_bytes()).hexdigest()
    (checkpoint / "digests.json").write_text(json.dumps(digests))
    with refuses(CheckpointError, "cannot resume from"):
        make_trainer(dataset, tmp_path / "run").resume()
    assert not (tmp_path / "harm").exists()
