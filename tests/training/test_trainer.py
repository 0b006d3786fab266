import copy
import math
import os
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from helpers.assertions import assert_close, refuses
from helpers.training import (
    CONFIG,
    assert_equal_weights,
    before_steps,
    give_scaler,
    interrupt_after,
    make_model,
    make_trainer,
    weights,
)
from torch.utils.data import Subset

from tmapdiff import MomentDataset, Trainer
from tmapdiff.data import collate_moments
from tmapdiff.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FeatureError,
    MissingDependencyError,
)
from tmapdiff.kernels._dispatch import choose_fastest
from tmapdiff.models import MapLocalizer
from tmapdiff.training import TrainingConfig
from tmapdiff.training.trainer import _HostCopy, _inputs

HEAD = "decoder.decoders.0.head.weight"


def test_the_progress_bar_shows_the_loss(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    make_trainer(dataset, tmp_path, replace(CONFIG, epochs=1), show_progress=True).train()
    assert re.search(r"training: .*, loss \d\.\d{4}\]", capsys.readouterr().err)


@pytest.mark.train
def test_features_of_words_train_as_their_indices_do(dataset, tmp_path):
    # One-hot features with the embeddings as linear layer: the same function of the sentences.
    vocabulary, size = dataset.vocabulary, len(dataset.vocabulary)
    features = {
        item.query: torch.eye(size)[vocabulary.encode(item.query)] for item in dataset.annotations
    }
    of_features = MomentDataset(
        dataset.annotations, dataset.store, None, num_clips=8, word_features=features
    )
    by_index = make_model(dataset)
    by_feature = make_model(dataset, encoder={"text_channels": size}, vocabulary_size=None)
    state = by_index.state_dict()
    embedding = "encoder.text_encoder.embedding"
    state[f"{embedding}.weight"] = state[f"{embedding}.weight"].T
    state[f"{embedding}.bias"] = torch.zeros(8)
    by_feature.load_state_dict(state)
    # Steps so small that the bias, which embeddings lack, stays zero.
    config = replace(CONFIG, learning_rate=1e-12)
    histories = []
    for name, data, model in (("index", dataset, by_index), ("feature", of_features, by_feature)):
        torch.manual_seed(1)  # for dropout
        trainer = make_trainer(data, tmp_path / name, config, model)
        trainer.train()
        histories.append(torch.tensor([entry["loss"] for entry in trainer.history]))
    assert_close(*histories)
    assert histories[0].unique().numel() == config.epochs  # other timesteps and noise each time


@pytest.mark.train
def test_training_learns_and_moves_both_sets_of_weights(dataset, tmp_path):
    config = replace(CONFIG, epochs=12, learning_rate=3e-3, warmup=0.25)
    trainer = make_trainer(dataset, tmp_path, config)
    before, modes = weights(trainer), []
    before_steps(trainer, lambda _: modes.append(trainer.raw_model.training))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.history]
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]
    after = weights(trainer)
    for which in ("raw", "ema"):
        assert not torch.equal(before[f"{which}.{HEAD}"], after[f"{which}.{HEAD}"])
    assert not torch.equal(after[f"raw.{HEAD}"], after[f"ema.{HEAD}"])
    # Training mode during training, evaluation mode afterwards.
    assert modes == [True] * 12 * len(trainer.loader)


def test_weights_are_those_of_a_plain_loop(dataset, tmp_path):
    config = replace(CONFIG, epochs=2, learning_rate=1e-2, weight_decay=0.5, warmup=0.3)
    config = replace(config, gradient_clip=0.1, ema_decay=0.5)
    model, batches = make_model(dataset, dropout=0.0, presence_weights=[1.0, 1.0, 1.0]), []
    mine, average = (copy.deepcopy(model).double().train() for _ in range(2))
    trainer = make_trainer(dataset, tmp_path, config, model.double())
    before_steps(trainer, batches.append)
    trainer.train()
    matrices = [one for one in mine.parameters() if one.dim() > 1]
    others = [one for one in mine.parameters() if one.dim() <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.5)
    steps, rises = len(batches), math.ceil(0.3 * len(batches))
    for step, batch in enumerate(batches):
        rate = 1e-2 / rises * (1 + step * (1 - 1 / rises))
        if step >= rises:
            rate = 1e-2 * (1 + math.cos(math.pi * (step - rises) / (steps - rises))) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        first = config.seed * 1_000_000_007 + step * config.batch_size
        noise = [torch.Generator().manual_seed(first + row) for row in range(len(batch))]
        optimizer.zero_grad()
        mine.loss(
            *(batch.features, batch.words, batch.num_words, batch.moments, batch.clip_seconds),
            *(batch.num_moments, batch.num_clips, noise),
        ).backward()
        torch.nn.utils.clip_grad_norm_(mine.parameters(), 0.1)
        optimizer.step()
        kept = min(1 - (1 + step) ** (-2 / 3), 0.5)  # the moving average warms up
        for one, other in zip(
            average.state_dict().values(), mine.state_dict().values(), strict=True
        ):
            one.copy_(one * kept + other * (1 - kept) if one.is_floating_point() else other)
    for found, expected in ((trainer.raw_model, mine), (trainer.ema_model, average)):
        for name, one in expected.state_dict().items():
            assert torch.allclose(found.state_dict()[name], one, rtol=1e-6, atol=1e-8), name
        assert found.config.presence_weights is None  # they were fitted on maps before training


def test_models_are_in_evaluation_mode_however_training_ended(dataset, tmp_path):
    whole = make_trainer(dataset, tmp_path / "whole", replace(CONFIG, epochs=1))
    whole.train()
    stopped = interrupt_after(make_trainer(dataset, tmp_path / "stopped"), 1)
    for trainer in (whole, stopped):
        for model in (trainer.raw_model, trainer.ema_model):
            assert not any(part.training for part in model.modules())


def test_one_precision_a_process(dataset, tmp_path):
    make_trainer(dataset, tmp_path)
    with refuses(ConfigError, "Trainer: AcceleratorState has already been initialized"):
        Trainer(make_model(dataset), dataset, replace(CONFIG, mixed_precision="bf16"), tmp_path)


# Values that are not finite


def assert_not_moved(trainer: Trainer, before: dict[str, torch.Tensor]) -> None:
    for name, value in weights(trainer).items():
        # Batch norm's statistics include the batch.
        if name.startswith("raw.") and "running" not in name and "num_batches" not in name:
            assert torch.equal(value, before[name]), name


def spoil_gradient(trainer: Trainer, steps: range, value: float) -> None:
    """Set the gradient of one weight to a value in some steps."""

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, value) if trainer.progress.step in steps else gradient

    trainer.raw_model.decoder.decoders[0].head.weight.register_hook(spoil)


# Detected by the next step, before a checkpoint, and at the end of an epoch.
@pytest.mark.parametrize(
    ("step", "checkpoint_steps", "value"), [(1, None, math.nan), (1, 1, math.inf), (3, 1, math.nan)]
)
def test_gradient_that_is_not_finite_names_the_batch_and_spoils_no_checkpoint(
    dataset, tmp_path, step, checkpoint_steps, value
):
    trainer = make_trainer(dataset, tmp_path, replace(CONFIG, checkpoint_steps=checkpoint_steps))
    assert len(trainer.loader) == 4
    spoil_gradient(trainer, range(step, step + 1), value)
    batches, states = [], []
    before_steps(trainer, batches.append)
    before_steps(trainer, lambda _: states.append(weights(trainer)))
    named = r"queries \d+ \(video [\w-]+\), .*"
    text = rf"expected a finite loss and norm .*, got \S+ and \S+ at step {step}, {named}Lower"
    with pytest.raises(ArgumentError, match=text) as caught:
        trainer.train()
    for qid, video_id in zip(batches[step].qids, batches[step].video_ids, strict=True):
        assert f"{qid} (video {video_id})" in str(caught.value)
    # Checkpoints are not affected.
    names = [path.name for path in trainer.checkpoints[-1:]]
    assert names == ([f"epoch-0000-step-{step:08d}"] if checkpoint_steps else [])
    resumed = make_trainer(dataset, tmp_path).resume()
    if checkpoint_steps:
        assert_not_moved(resumed, states[step])


def test_half_precision_skips_gradients_that_overflow(dataset, tmp_path):
    config = replace(CONFIG, epochs=2, mixed_precision="fp16")
    trainer = give_scaler(make_trainer(dataset, tmp_path, config))
    spoil_gradient(trainer, range(1, 3), math.inf)
    states: list[torch.Tensor] = []
    name = "raw.encoder.clip_encoder.weight"
    before_steps(trainer, lambda _: states.append(weights(trainer)[name]))
    trainer.train()
    moved = [not torch.equal(*pair) for pair in pairwise(states[1:5])]
    assert moved == [False, False, True]
    assert trainer.progress.skipped == 0
    assert trainer.accelerator.scaler.get_scale() == 2**14


def test_gradients_that_go_on_overflowing_end_training(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tmapdiff.training.trainer._MOST_SKIPPED_STEPS", 6)
    trainer = make_trainer(dataset, tmp_path, replace(CONFIG, mixed_precision="fp16"))
    spoil_gradient(give_scaler(trainer), range(2, 99), math.inf)
    text = r"expected a finite loss and norm .* at step 8, queries \d+ .* 6 steps before had none"
    with pytest.raises(ArgumentError, match=text):
        trainer.train()
    assert trainer.checkpoints[-1].name == "epoch-0002"


def test_numbers_of_a_step_are_read_one_step_later(dataset, tmp_path, monkeypatch):
    """Reading them at once would make the host wait for a GPU."""
    trainer, read = make_trainer(dataset, tmp_path), []
    monkeypatch.setattr(_HostCopy, "read", lambda copy: read.append(copy) or copy.numbers.tolist())
    batches = iter(trainer.loader)
    trainer._step(next(batches))
    assert read == []
    first, *_ = trainer._unchecked
    trainer._step(next(batches))
    assert read == [first]


def test_features_that_are_not_finite_end_training_and_name_the_video(dataset, tmp_path):
    video_id = dataset.annotations[0].video_id

    class Spoilt:
        """A custom store that does not check its features."""

        feature_dim, description = dataset.store.feature_dim, "my features"
        seconds_per_feature = dataset.store.seconds_per_feature

        def __getitem__(self, name):
            features = dataset.store[name].clone()
            features[3] = torch.nan if name == video_id else 0
            return features

    spoilt = MomentDataset(dataset.annotations, Spoilt(), dataset.vocabulary, num_clips=8)
    got = rf"NaN or infinity in 1 clips\. \(video '{video_id}', query"
    with pytest.raises(FeatureError, match=f"my features: expected finite features, got {got}"):
        make_trainer(spoilt, tmp_path).train()


def test_batches_are_checked_before_they_are_moved(dataset, tmp_path):
    def spoil(batch):
        batch.moments[:] = batch.moments.flip(-1)

    trainer = make_trainer(dataset, tmp_path)
    before_steps(trainer, spoil)
    with refuses(ArgumentError, "IoUMapBuilder: expected 0 <= start < end"):
        trainer.train()
    # Evaluation still checks values.
    assert trainer.raw_model.build_iou_maps.validate
    assert trainer.raw_model.encoder.text_encoder.validate


# Arithmetic


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(dataset, tmp_path, precision):
    config = replace(CONFIG, epochs=1, mixed_precision=precision)
    trainer = make_trainer(dataset, tmp_path, config)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(value.isfinite().all() for value in after.values())
    assert after[f"raw.{HEAD}"].dtype == torch.float32
    name = "raw.encoder.clip_encoder.weight"
    assert not torch.equal(before[name], after[name])
    # Afterwards, calls are in full precision again.
    batch = _inputs(collate_moments([dataset[index] for index in range(4)]))
    for model in (trainer.raw_model, trainer.ema_model):
        called, loss = (
            call(*batch, torch.Generator().manual_seed(0)) for call in (model, model.loss)
        )
        assert torch.equal(called, loss)


def test_deterministic_runs_are_equal_and_choose_nothing_by_the_clock(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "tmapdiff.kernels._dispatch._measure", lambda *_: pytest.fail("asked the clock")
    )
    modes, runs = [], []

    def look(_: Any) -> None:
        modes.append(torch.are_deterministic_algorithms_enabled())
        # Would be timed without this mode.
        choose_fastest(
            "op", {"a": None, "b": None}, None, candidates=["a", "b"], key=f"{len(modes)}",
            run=lambda name: None, device=torch.device("cpu"),
        )  # fmt: skip

    for name in ("a", "b"):
        config = replace(CONFIG, epochs=1, deterministic=True)
        trainer = make_trainer(dataset, tmp_path / name, config)
        before_steps(trainer, look)
        trainer.train()
        runs.append(weights(trainer))
        assert not torch.are_deterministic_algorithms_enabled()
    assert modes == [True] * 2 * len(trainer.loader)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert_equal_weights(*runs)


def one_step(dataset, folder, config, **kind) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of the first step."""
    trainer = make_trainer(dataset, folder, config, make_model(dataset, **kind))
    gradients = {}

    def keep(*_: object) -> None:
        for name, one in trainer.raw_model.named_parameters():
            gradients[name] = one.grad.clone()

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    loss = trainer._step(next(iter(trainer.loader)))
    return loss.item(), gradients


@pytest.mark.parametrize("baseline", [False, True])
def test_activation_checkpointing_changes_no_bit(dataset, tmp_path, baseline):
    # With dropout, the recomputed forward pass has to draw the same numbers.
    loss, gradients = one_step(dataset, tmp_path / "kept", CONFIG, baseline=baseline)
    checkpointing = replace(CONFIG, activation_checkpointing=True)
    again, others = one_step(dataset, tmp_path / "anew", checkpointing, baseline=baseline)
    assert again == loss
    assert_equal_weights(others, gradients)


def test_activation_checkpointing_keeps_less_for_the_gradient(dataset):
    batch = collate_moments([dataset[index] for index in range(8)])

    def bytes_kept(model: MapLocalizer) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # keeps its address from being reused
            return tensor

        held: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train().loss(
                batch.features, batch.words, batch.num_words, batch.moments, batch.clip_seconds
            )
        return sum(kept.values())

    model = make_model(dataset)
    most = bytes_kept(model)
    model.enable_gradient_checkpointing()
    assert bytes_kept(model) < 0.7 * most


def trace_only(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Trace for compilation without generating code, which needs a compiler and a minute."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compiled(self, **how, backend=backend)
    )
    torch._dynamo.reset()


# torch's compiler reads the gradients of all inputs.
of_compiler = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@of_compiler
@pytest.mark.compile
@pytest.mark.parametrize("baseline", [False, True])
def test_compiled_training_is_close(dataset, tmp_path, monkeypatch, baseline):
    trace_only(monkeypatch, "aot_eager")
    losses, states = [], []
    for name, compiles in (("eager", False), ("compiled", True)):
        # Without dropout, as compiled code draws other random numbers.
        model = make_model(dataset, baseline=baseline, dropout=0.0)
        trainer = make_trainer(dataset, tmp_path / name, replace(CONFIG, compile=compiles), model)
        losses.append(torch.stack([trainer._step(batch) for batch in trainer.loader]))
        states.append(weights(trainer))
        part = trainer.raw_model.encoder.map_features
        assert (part._compiled_call_impl is not None) == compiles
    assert_close(losses[1], losses[0], torch.float32)
    assert states[0].keys() == states[1].keys()


@of_compiler
@pytest.mark.compile
def test_compiled_runs_are_saved_and_resumed(dataset, tmp_path, monkeypatch):
    trace_only(monkeypatch, "eager")
    config = replace(CONFIG, epochs=2, compile=True)
    whole = make_trainer(dataset, tmp_path / "whole", config, validation=dataset, validate_every=1)
    whole.train()
    interrupt_after(make_trainer(dataset, tmp_path / "parts", config), 1)
    resumed = make_trainer(dataset, tmp_path / "parts", config).resume()
    resumed.train()
    assert_equal_weights(weights(whole), weights(resumed))
    for model in (whole.raw_model, whole.ema_model):
        model.save_pretrained(tmp_path / "model")
        loaded = type(model).from_pretrained(tmp_path / "model")
        assert_equal_weights(dict(loaded.state_dict()), dict(model.state_dict()))
    with refuses(CheckpointError, "with compile = False, got True."):
        make_trainer(dataset, tmp_path / "whole", replace(config, compile=False)).resume()


# Validation, data and configuration


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ({}, [1, 2]),
        pytest.param({"validate_every": 2}, [2], marks=pytest.mark.train),
        pytest.param({"validate_every": None}, [], marks=pytest.mark.train),
    ],
)
def test_a_validation_set_is_evaluated_after_epochs_and_drawn(
    dataset, tmp_path, options, validated
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(CONFIG, epochs=2, heat_map_every=2)
    trainer = make_trainer(dataset, tmp_path, config, validation=dataset, **options)
    trainer.train()
    assert [entry["epoch"] for entry in trainer.history if "mIoU" in entry] == validated
    (events,) = (tmp_path / "tensorboard").rglob("events.*")
    log = EventAccumulator(str(events))
    log.Reload()
    scalars = {"loss", "learning_rate"} | ({"Rank1@0.5", "mIoU"} if validated else set())
    assert scalars <= set(log.Tags()["scalars"])
    assert len(log.Scalars("loss")) == 2
    assert len(log.Images("validation query")) == 1


def test_last_batch_of_one_query_is_left_out_and_a_set_of_one_refused(dataset, tmp_path):
    one_left = replace(CONFIG, epochs=1, batch_size=len(dataset) - 1)
    trainer = make_trainer(dataset, tmp_path, one_left)
    assert len(trainer.loader) == 1
    trainer.train()
    with refuses(ArgumentError, "expected queries in the data set to be an integer >= 2, got 1"):
        make_trainer(Subset(dataset, [0]), tmp_path)


def test_config_refuses_what_is_out_of_range():
    for field, value, text in (
        ("epochs", 0, "epochs to be an integer >= 1, got 0"),
        ("batch_size", 1.5, "batch_size to be an integer >= 2, got 1.5"),
        ("learning_rate", 0, "learning_rate in (0, inf), got 0"),
        ("weight_decay", -1, "weight_decay in [0, inf), got -1"),
        ("warmup", 2, "warmup in [0, 1], got 2"),
        ("gradient_clip", float("nan"), "gradient_clip in (0, inf), got nan"),
        ("ema_decay", 1.1, "ema_decay in [0, 1], got 1.1"),
        ("checkpoint_steps", 0, "checkpoint_steps to be an integer >= 1, got 0"),
        ("checkpoint_minutes", 0, "checkpoint_minutes in (0, inf), got 0"),
        ("keep_checkpoints", 0, "keep_checkpoints to be an integer >= 1, got 0"),
        ("num_workers", None, "num_workers to be an integer >= 0, got None"),
        ("seed", -1, "seed to be an integer >= 0, got -1"),
        ("seed", 2**32, "seed in [0, 4.29497e+09], got 4294967296"),
    ):
        with refuses(ArgumentError, f"TrainingConfig: expected {text}"):
            TrainingConfig(**{field: value})
    with refuses(ConfigError, "expected mixed_precision to be one of no, fp16, bf16"):
        TrainingConfig(mixed_precision="fp8")


def test_scalars_of_numpy_and_torch_are_stored_as_numbers_of_python():
    rates = {"learning_rate": np.float64(0.5), "warmup": torch.tensor(0.25)}
    config = TrainingConfig(epochs=np.int64(2), deterministic=np.bool_(True), **rates)
    kinds = {type(value) for value in vars(config).values()}
    assert kinds <= {int, float, bool, str, type(None)}  # which checkpoints may hold
    plain = {"learning_rate": 0.5, "warmup": 0.25}
    assert config == TrainingConfig(epochs=2, deterministic=True, **plain)


def test_missing_accelerate_names_the_extra(dataset, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with refuses(MissingDependencyError, "pip install -e '.[train]'"):
        Trainer(make_model(dataset), dataset, CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "GRADIENT_ACCUMULATION_STEPS",
            "4",
            "gradient_accumulation_steps 1 of accelerate, got 4. Set batch_size instead.",
        ),
        ("DYNAMO_BACKEND", "EAGER", "dynamo_backend NO of accelerate, got EAGER. Set compile inst"),
        (
            "MIXED_PRECISION",
            "bf16",
            "mixed_precision no of accelerate, got bf16. Set mixed_precision of TrainingConfig in",
        ),
    ],
)
def test_settings_of_a_launch_that_training_does_not_follow_are_refused(
    dataset, tmp_path, monkeypatch, name, value, told
):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with refuses(ConfigError, f"Trainer: expected {told}"):
        make_trainer(dataset, tmp_path)


@pytest.mark.parametrize("launched", ["no", "bf16"])  # "no" is what a launch sets by default
def test_precision_of_a_launch_that_is_that_of_the_training(
    dataset, tmp_path, monkeypatch, launched
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    trainer = make_trainer(dataset, tmp_path, replace(CONFIG, mixed_precision="bf16"))
    assert trainer.accelerator.mixed_precision == "bf16"


def test_weights_in_half_precision_are_trained_with_a_warning(dataset, tmp_path, recwarn):
    model = make_model(dataset)
    model.encoder.requires_grad_(False).bfloat16()  # frozen weights may be in any precision
    make_trainer(dataset, tmp_path, model=model)
    assert not [one for one in recwarn if "Trainer: " in str(one.message)]
    with pytest.warns(UserWarning, match="Trainer: expected weights in float32 to train, got t"):
        make_trainer(dataset, tmp_path, model=make_model(dataset).bfloat16())


def test_fewer_queries_than_processes_are_refused(dataset, tmp_path, monkeypatch):
    make_trainer(dataset, tmp_path)  # sets up the process
    monkeypatch.setitem(PartialState._shared_state, "num_processes", len(dataset) + 1)
    expected = f"Trainer: expected queries in the data set to be an integer >= {len(dataset) + 1}"
    with refuses(ArgumentError, f"{expected}, got {len(dataset)}."):
        Trainer(make_model(dataset), dataset, CONFIG, tmp_path, device="cpu")


def test_the_last_seed_works_on_every_process(dataset, tmp_path, monkeypatch):
    make_trainer(dataset, tmp_path)  # sets up the process
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    Trainer(make_model(dataset), dataset, replace(CONFIG, seed=2**32 - 1), tmp_path, device="cpu")
    assert torch.initial_seed() == 0


def test_another_accelerator_that_accumulates_gradients_changes_nothing(dataset, tmp_path):
    from accelerate import Accelerator
    from accelerate.state import GradientState

    config = replace(CONFIG, epochs=1)
    whole = make_trainer(dataset, tmp_path / "whole", config)
    whole.train()
    trainer = make_trainer(dataset, tmp_path / "other", config)
    other = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with other.accumulate():
        assert not other.sync_gradients  # as a loop leaves it that ends within an accumulation
    try:
        trainer.train()
    finally:
        GradientState._reset_state()
    assert_equal_weights(weights(trainer), weights(whole))
