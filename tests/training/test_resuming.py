"""Runs that are stopped anywhere and resume as if they had not been."""

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
from types import SimpleNamespace

import pytest
import torch
from helpers.assertions import refuses
from helpers.datasets import contents
from helpers.processes import forks
from helpers.training import (
    CONFIG,
    Interrupted,
    assert_equal_weights,
    before_steps,
    give_scaler,
    interrupt_after,
    make_model,
    make_trainer,
    stop_at_step,
    weights,
)
from torch.utils.data import Subset

from tmapdiff import ActionTimelineFeatures, MomentDataset, Vocabulary
from tmapdiff.data import AnnotationSet
from tmapdiff.errors import CheckpointError, ConfigError, FileError
from tmapdiff.evaluation import Evaluation
from tmapdiff.losses import get_objective

SAME_RUN = "Trainer: expected a checkpoint of the same run, with "


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> SimpleNamespace:
    """An uninterrupted run of three epochs, and its result."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(dataset, folder)
    trainer.train()
    return SimpleNamespace(
        folder=folder,
        weights=weights(trainer),
        history=trainer.history,
        learning_rate=trainer.optimizer.param_groups[0]["lr"],
        steps=len(trainer.loader),
    )


@pytest.fixture(scope="module")
def epoch(dataset, tmp_path_factory) -> Path:
    """The folder of the same run, stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("epoch")
    interrupt_after(make_trainer(dataset, folder), 1)
    return folder


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole.folder, tmp_path / "finished"))


@pytest.fixture
def parts(epoch, tmp_path) -> Path:
    return Path(shutil.copytree(epoch, tmp_path / "parts"))


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}])
def test_resumed_run_equals_uninterrupted_run(dataset, whole, parts, changes):
    torch.manual_seed(12345)  # another process, with another random state
    resumed = make_trainer(dataset, parts, replace(CONFIG, **changes)).resume()
    assert resumed.progress.epoch == 1
    resumed.train()
    assert_equal_weights(whole.weights, weights(resumed))
    assert resumed.optimizer.param_groups[0]["lr"] == whole.learning_rate
    assert resumed.history == whole.history
    assert [entry["epoch"] for entry in resumed.history] == [1, 2, 3]
    names = [path.name for path in (parts / "checkpoints").iterdir()]
    assert sorted(names) == ["epoch-0002", "epoch-0003"]
    assert json.loads((parts / "training.json").read_text())["epochs"] == 3


@pytest.mark.train
@pytest.mark.parametrize("epochs", [1, 2])
def test_validation_does_not_change_a_resumed_run(dataset, whole, tmp_path, epochs):
    options = {"validation": dataset, "validate_every": 2}
    interrupt_after(make_trainer(dataset, tmp_path, **options), epochs)
    resumed = make_trainer(dataset, tmp_path, **options).resume()
    resumed.train()
    assert_equal_weights(whole.weights, weights(resumed))


@forks
def test_worker_processes_change_nothing(dataset, whole, parts, tmp_path):
    test_resumed_run_equals_uninterrupted_run(dataset, whole, parts, {"num_workers": 1})
    trainer = make_trainer(dataset, tmp_path, replace(CONFIG, num_workers=1))
    trainer.train()
    assert_equal_weights(whole.weights, weights(trainer))


def test_what_changes_the_result_is_refused_and_what_does_not_is_not(dataset, parts):
    written = (parts / "training.json").read_text()
    wider = make_model(dataset)
    wider.register_to_config(nms_threshold=0.6)
    other = copy.copy(dataset)
    other.store = ActionTimelineFeatures({}, num_classes=3, feature_dim=16, seed=7)
    words = {item.query: torch.ones(1, 4) for item in dataset.annotations}
    of_features = MomentDataset(
        dataset.annotations, dataset.store, None, dataset.num_clips, word_features=words
    )
    backwards = Vocabulary(dataset.vocabulary.words[:1:-1])
    reordered = MomentDataset(dataset.annotations, dataset.store, backwards, dataset.num_clips)
    first, *others = dataset.annotations
    first = replace(first, moments=((0.0, first.duration),))
    retimed = MomentDataset(
        AnnotationSet([first, *others]), dataset.store, dataset.vocabulary, dataset.num_clips
    )
    deterministic = replace(CONFIG, deterministic=True)
    objective = make_model(dataset, objective="bce-full")
    exchanged = make_model(dataset)
    exchanged.objective = get_objective("l1-full")
    for data, config, model, text in (
        (dataset, CONFIG, objective, "model.objective = 'bce-full', got 'mse-full'. Use"),
        (dataset, CONFIG, exchanged, "model.objective = 'l1-full', got 'mse-full'. Use"),
        (dataset, CONFIG, wider, "model.nms_threshold = 0.6, got 0.49."),
        (other, CONFIG, None, "features = 'SIMULATED action timelines"),
        (of_features, CONFIG, make_model(dataset), "queries_sha256 = '"),
        (reordered, CONFIG, None, "queries_sha256 = '"),
        (retimed, CONFIG, None, "queries_sha256 = '"),
        (dataset, replace(CONFIG, learning_rate=0.5), None, "learning_rate = 0.5, got 0.001."),
        (dataset, deterministic, None, "deterministic = True, got False."),
        (dataset, replace(CONFIG, epochs=2), None, "epochs = 2, got 3."),
    ):
        with refuses(CheckpointError, SAME_RUN + text):
            make_trainer(data, parts, config, model).resume()
    # A rejected run has not touched the files of the other.
    assert (parts / "training.json").read_text() == written
    progress = make_trainer(dataset, parts).progress
    older = {**progress.config["model"], "presence_weights": [1.0, 1.0, 1.0]}  # since discarded
    progress.check({"config": {**progress.config, "model": older}})
    free = replace(CONFIG, heat_map_every=3, keep_checkpoints=5, checkpoint_minutes=None)
    assert make_trainer(dataset, parts, free).resume().progress.epoch == 1


def test_another_part_of_the_data_is_refused(dataset, tmp_path):
    first, same, other = (Subset(dataset, range(start, start + 16)) for start in (0, 0, 4))
    interrupt_after(make_trainer(first, tmp_path), 1)
    assert make_trainer(same, tmp_path).resume().progress.epoch == 1
    with refuses(CheckpointError, f"{SAME_RUN}queries_sha256 = "):
        make_trainer(other, tmp_path).resume()


@pytest.mark.parametrize("state", ["finished", "parts"])
def test_training_in_a_used_folder_is_refused_and_loses_nothing(dataset, state, request):
    folder = request.getfixturevalue(state)
    before = contents(folder)
    for _ in range(2):
        with refuses(FileError, f"Trainer: expected no earlier run in {folder}, got checkpoints"):
            make_trainer(dataset, folder).train()
        assert contents(folder) == before
    damaged = make_trainer(dataset, folder)
    for path in damaged.checkpoints:
        (path / "model.safetensors").write_bytes(b"")
    several = len(damaged.checkpoints) > 1
    with (
        pytest.warns(UserWarning, match="is damaged") if several else nullcontext(),
        refuses(CheckpointError, "Trainer: cannot resume from "),
    ):
        damaged.resume()
    # Continuing after that still needs to be requested.
    with refuses(FileError, "Continue it with resume, replace it with overwrite=True, or use ano"):
        damaged.train()
    assert contents(folder).keys() == before.keys()


def test_metrics_without_checkpoints_are_an_earlier_run(dataset, finished):
    shutil.rmtree(finished / "checkpoints")
    with refuses(FileError, f"expected no earlier run in {finished}, got history.json. Continue"):
        make_trainer(dataset, finished).train()


def test_an_aborted_start_is_no_earlier_run_and_replaces_one_only_if_asked(
    dataset, finished, tmp_path
):
    def stop(_: object) -> None:
        raise Interrupted

    for folder, options in ((tmp_path / "new", {}), (finished, {"overwrite": True})):
        aborted = make_trainer(dataset, folder, **options)
        before_steps(aborted, stop)
        for _ in range(2):
            with pytest.raises(Interrupted):
                aborted.train()
        assert make_trainer(dataset, folder).resume().progress.epoch == 0


def learning_rate_at(step: int, epochs: int, steps: int) -> float:
    """Compute warm-up and cosine by their definition."""
    total, highest = epochs * steps, CONFIG.learning_rate
    rising = math.ceil(CONFIG.warmup * total)
    if step < rising:
        return highest / rising + (highest - highest / rising) * step / rising
    return highest * (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2


@pytest.mark.train
@pytest.mark.parametrize("stop", ["never", "between epochs", "within an epoch"])
def test_a_run_may_get_more_epochs(dataset, whole, finished, parts, tmp_path, capsys, stop):
    longer, folder, done = replace(CONFIG, epochs=5), finished, 3 * whole.steps
    if stop == "between epochs":
        folder, done = parts, whole.steps
    elif stop == "within an epoch":
        folder, done = tmp_path / "within", whole.steps + 1
        stop_at_step(make_trainer(dataset, folder), done)
    second = make_trainer(dataset, folder, longer, show_progress=True).resume()
    assert second.progress.step == done
    rates: list[float] = []
    before_steps(second, lambda _: rates.append(second.optimizer.param_groups[0]["lr"]))
    second.train()
    total = 5 * whole.steps
    expected = [learning_rate_at(step, 5, whole.steps) for step in range(done, total)]
    assert rates == pytest.approx(expected)
    assert [entry["epoch"] for entry in second.history] == [1, 2, 3, 4, 5]
    assert "epoch 5/5  loss " in capsys.readouterr().out
    # From here on, it is an ordinary run of five epochs.
    assert make_trainer(dataset, folder, longer).resume().progress.step == total
    with refuses(CheckpointError, f"{SAME_RUN}epochs = 3, got 5."):
        make_trainer(dataset, folder).resume()


@pytest.mark.train
def test_an_extended_run_that_is_interrupted_equals_one_that_is_not(dataset, whole, finished):
    longer = replace(CONFIG, epochs=5)
    parts = shutil.copytree(finished, finished.with_name("parts"))
    extended = make_trainer(dataset, finished, longer).resume()
    extended.train()
    interrupt_after(make_trainer(dataset, parts, longer).resume(), 4)
    second = make_trainer(dataset, parts, longer).resume()
    second.train()
    assert_equal_weights(weights(extended), weights(second))


class Scribbled:
    """A data set whose samples draw random numbers, as for windows."""

    def __init__(self, dataset: MomentDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        sample = self.dataset[index]
        return replace(sample, features=sample.features + 0.1 * torch.randn(8, 16))


@forks
@pytest.mark.train
@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_run_goes_on_within_an_epoch(dataset, tmp_path, precision):
    def make(folder: str, workers: int = 0):
        config = replace(CONFIG, mixed_precision=precision, num_workers=workers)
        options = {"validation": dataset, "validate_every": 2}
        trainer = make_trainer(Scribbled(dataset), tmp_path / folder, config, **options)
        return give_scaler(trainer) if precision == "fp16" else trainer

    whole = make("whole")
    whole.train()
    steps = len(whole.loader)
    assert steps >= 3
    # The second part in the same epoch as the first, the last with workers.
    for step in (steps + 1, steps + 2):
        torch.manual_seed(step)
        trainer = stop_at_step(make("parts").resume(), step)
        assert trainer.checkpoints[-1].name == f"epoch-0001-step-{step:08d}"
    trainer = make("parts", workers=1).resume()
    trainer.train()
    assert_equal_weights(weights(whole), weights(trainer))
    assert trainer.progress.step == whole.progress.step
    assert trainer.history == whole.history
    assert [entry["epoch"] for entry in trainer.history if "mIoU" in entry] == [2]
    if precision == "fp16":
        assert trainer.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert json.loads((tmp_path / "parts" / "history.json").read_text()) == trainer.history


@pytest.mark.parametrize(
    ("changes", "within"),
    [({"checkpoint_steps": 2}, [2]), ({"checkpoint_minutes": 1e-9}, [1, 2, 3]), ({}, [])],
)
def test_checkpoints_by_steps_and_by_minutes(dataset, tmp_path, changes, within):
    config = replace(CONFIG, epochs=1, keep_checkpoints=99, **changes)
    trainer = make_trainer(dataset, tmp_path, config)
    trainer.train()
    assert len(trainer.loader) == 4
    expected = [*(f"epoch-0000-step-{step:08d}" for step in within), "epoch-0001"]
    assert [path.name for path in trainer.checkpoints] == expected


def test_the_last_good_checkpoint_is_used_and_the_damaged_one_named(dataset, whole, finished):
    trainer = make_trainer(dataset, finished)
    earlier, newest = trainer.checkpoints
    with (newest / "optimizer.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\x00\x01\x02\x03")
    text = f"checkpoint is damaged; falling back to the previous one. {newest}: expected the files"
    with pytest.warns(UserWarning, match=re.escape(text) + ".*another optimizer.bin"):
        trainer.resume()
    assert trainer.progress.step == 2 * whole.steps
    trainer.train()
    assert trainer.checkpoints == [earlier, newest]
    assert_equal_weights(whole.weights, weights(trainer))
    assert trainer.history == whole.history


def test_later_checkpoints_than_the_one_taken_are_removed(dataset, finished):
    trainer = make_trainer(dataset, finished)
    earlier, newest = trainer.checkpoints
    trainer.resume(earlier)
    seen = []
    before_steps(trainer, lambda _: seen.append(trainer.checkpoints))
    trainer.train()
    assert seen[0] == [earlier]
    assert trainer.checkpoints == [earlier, newest]


@pytest.mark.train
def test_the_best_checkpoint_stays_and_can_be_taken(dataset, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 5.0, 6.0, 1.0])

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
    with refuses(ConfigError, "best_metric to be one of mIoU, Rank1@0.5, got 'Rank@1'"):
        make_trainer(dataset, tmp_path / "other", other, validation=dataset).train()


@pytest.mark.train
def test_an_epoch_that_was_validated_is_not_again(dataset, tmp_path):
    options = {"validation": dataset, "validate_every": 1}
    trainer = make_trainer(dataset, tmp_path, **options)
    stop_at_step(trainer, len(trainer.loader) + 1)
    for path in trainer.checkpoints[1:]:
        shutil.rmtree(path)
    second = make_trainer(dataset, tmp_path, **options).resume()
    validated, validate = [], second._validate
    second._validate = lambda: validated.append(second.progress.epoch) or validate()
    second.train()
    assert validated == [2, 3]


def test_logs_of_lost_steps_are_not_shown_twice(dataset, whole, finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Back to the end of the second epoch: the third is logged again.
    trainer = make_trainer(dataset, finished)
    trainer.resume(trainer.checkpoints[0]).train()
    log = EventAccumulator(str(finished / "tensorboard"))
    log.Reload()
    steps = [event.step for event in log.Scalars("loss")]
    assert steps == [whole.steps * epoch for epoch in (1, 2, 3)]


def test_checkpoint_that_cannot_be_written_is_one_line(dataset, tmp_path):
    trainer = make_trainer(dataset, tmp_path)
    (tmp_path / "checkpoints").write_text("a file where a folder must go")
    with pytest.raises(FileError, match=r"^cannot write .*epoch-0001: [^\n]+$"):
        trainer.train()


def test_output_folder_that_cannot_be_made_is_one_line(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with refuses(FileError, "cannot write ", ": Not a directory."):
        make_trainer(dataset, tmp_path / "file" / "run").train()


def test_an_untrusted_checkpoint_runs_no_code(dataset, parts, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (checkpoint,) = (parts / "checkpoints").iterdir()
    harm = checkpoint / "custom_checkpoint_0.pkl"
    torch.save(Payload(), harm)
    # An attacker can write digests, too.
    digests = json.loads((checkpoint / "digests.json").read_text())
    digests[harm.name] = hashlib.sha256(harm.read_bytes()).hexdigest()
    (checkpoint / "digests.json").write_text(json.dumps(digests))
    with refuses(CheckpointError, "cannot resume from"):
        make_trainer(dataset, parts).resume()
    assert not (tmp_path / "harm").exists()
