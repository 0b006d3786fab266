"""Training on accelerate: mixed precision, EMA, checkpoints that resume exactly."""

import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self

from tmapdiff._arrays import load_tensors
from tmapdiff._checks import check_choice, check_int, check_range, require
from tmapdiff._files import written_beside
from tmapdiff.data import MomentBatch, collate_moments
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError
from tmapdiff.evaluation import Evaluation, draw_queries, evaluate
from tmapdiff.models import MapLocalizer

MixedPrecision = Literal["no", "fp16", "bf16"]
MAX_SEED = 2**32 - 1  # NumPy's limit
# What may change between the parts of a run without changing its result.
_FREE_FIELDS = ("num_workers", "heat_map_every", "activation_checkpointing")
_SECONDS_BETWEEN_LOSSES = 1.0  # on the progress bar
_PROGRESS_INDEX = 1  # second of what is registered for checkpointing


@dataclass(frozen=True)
class TrainingConfig:
    """How a localizer is trained.

    Args:
        epochs: Passes over the training set.
        batch_size: Queries a step, on each process; batch normalisation needs two at least.
        learning_rate: Highest learning rate, after warm-up.
        weight_decay: Of AdamW, on matrices and kernels.
        warmup: Share of the steps in which the learning rate rises; it then falls as a cosine.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Decay of the moving average of the weights, reached after a warm-up.
        mixed_precision: Arithmetic of the forward pass.
        seed: Seed of weights drawn by the trainer's caller, data order and noise.
        num_workers: Processes that read data; 0 reads in the training process.
        heat_map_every: Epochs between heat maps in TensorBoard.
        activation_checkpointing: Keep few activations of the decoders, and compute them anew for
            the gradient: less memory, more time, the same results to the bit.
        compile: Let torch.compile speed up what holds most of the work (`compile_parts`); results
            are rounded differently.

    Raises:
        ArgumentError: If a number is out of range.
        ConfigError: If `mixed_precision` is unknown.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: MixedPrecision = "no"
    seed: int = 0
    num_workers: int = 0
    heat_map_every: int = 2
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        who = "TrainingConfig"
        check_int(who, "epochs", self.epochs, at_least=1)
        check_int(who, "batch_size", self.batch_size, at_least=2)
        check_range(who, "learning_rate", self.learning_rate, 0, open_low=True)
        check_range(who, "weight_decay", self.weight_decay, 0)
        check_range(who, "warmup", self.warmup, 0, 1)
        check_range(who, "gradient_clip", self.gradient_clip, 0, open_low=True)
        check_range(who, "ema_decay", self.ema_decay, 0, 1)
        check_choice(who, "mixed_precision", self.mixed_precision, MixedPrecision.__args__)  # type: ignore[attr-defined]
        check_range(who, "seed", check_int(who, "seed", self.seed, at_least=0), 0, MAX_SEED)
        check_int(who, "num_workers", self.num_workers, at_least=0)
        check_int(who, "heat_map_every", self.heat_map_every, at_least=1)


@dataclass
class Progress:
    """Where a training run is; part of each checkpoint.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps taken.
        config: What decides the run's result, to refuse a checkpoint of another run.
    """

    epoch: int
    step: int
    config: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """State for accelerate's checkpoints."""
        return asdict(self)

    def check(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if a state was saved by a run with another configuration."""
        for name, value in _flat(self.config).items():
            saved = _flat(state["config"]).get(name)
            if saved != value:
                raise CheckpointError(
                    f"Trainer: expected a checkpoint of the same run, with {name} = {value!r}, "
                    f"got {saved!r}. Use another output folder."
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            CheckpointError: If it was saved by a run with another configuration.
        """
        self.check(state)
        self.epoch, self.step = state["epoch"], state["step"]


class Trainer:
    """Trains a `MomentLocalizer`, or any other `MapLocalizer`.

    Keeps in `output_dir`: `checkpoints/`, with the state after the last epoch, from which a run
    continues as if it had not stopped; `tensorboard/`; and `training.json`, the configuration.

    Args:
        model: The localizer, with its initial weights.
        dataset: What to train on, usually a `MomentDataset`.
        config: How to train.
        output_dir: Folder of the run.
        validation: Data set to evaluate and draw after epochs. None, if None.
        validate_every: Epochs between evaluations; the heat map has its own rhythm.
        device: `cpu`, or whatever accelerate chooses, if None.
        show_progress: Whether to show a progress bar and a line an epoch.

    Raises:
        MissingDependencyError: If the extra `train` is not installed.
        ArgumentError: If the data set has fewer than two queries, or `validate_every` is below 1.
        ConfigError: If another training of this process has another `mixed_precision`.
        FileError: If `output_dir` cannot be written.

    Example:
        >>> trainer = Trainer(model, dataset, TrainingConfig(epochs=2), "runs/first")
        >>> trainer.train()
        >>> trainer.ema_model.save_pretrained("runs/first/model")
    """

    def __init__(
        self,
        model: MapLocalizer,
        dataset: Dataset[Any],
        config: TrainingConfig,
        output_dir: str | os.PathLike[str],
        *,
        validation: Dataset[Any] | None = None,
        validate_every: int | None = None,
        device: str | None = None,
        show_progress: bool = True,
    ) -> None:
        accelerate: Any = require("accelerate", extra="train", purpose="Trainer")
        utils: Any = require("accelerate.utils", extra="train", purpose="Trainer")
        require("tensorboard", extra="train", purpose="Trainer")
        queries = check_int("Trainer", "queries in the data set", len(dataset), at_least=2)  # type: ignore[arg-type]
        from timm.optim import param_groups_weight_decay
        from timm.scheduler import CosineLRScheduler
        from timm.utils import ModelEmaV3

        self.config = config
        self.output_dir = Path(output_dir)
        self.validation = validation
        self.validate_every = validate_every
        self.show_progress = show_progress
        if validate_every is not None:
            check_int("Trainer", "validate_every", validate_every, at_least=1)
        _check_writable(self.output_dir)
        state = accelerate.state.AcceleratorState
        if state._shared_state and state().mixed_precision != config.mixed_precision:
            raise ConfigError(
                f"Trainer: expected mixed_precision {state().mixed_precision!r}, as in this "
                f"process's first training, got {config.mixed_precision!r}. "
                "accelerate allows one a process: use another process."
            )
        self.accelerator = accelerate.Accelerator(
            cpu=device == "cpu",
            mixed_precision=config.mixed_precision,
            log_with="tensorboard",
            project_dir=str(self.output_dir),
            dataloader_config=utils.DataLoaderConfiguration(
                use_seedable_sampler=True, data_seed=config.seed
            ),
        )
        utils.set_seed(config.seed, device_specific=True)
        self.on_gpu = self.accelerator.device.type == "cuda"
        optimizer = torch.optim.AdamW(
            param_groups_weight_decay(model, config.weight_decay),
            lr=config.learning_rate,
            fused=self.on_gpu or self.accelerator.device.type == "cpu",
        )
        loader = DataLoader(
            dataset,
            batch_size=config.batch_size,
            shuffle=True,
            collate_fn=collate_moments,
            num_workers=config.num_workers,
            # Of its own: the loader would draw from torch's once an epoch, or with workers once a
            # process, and the noise after it would depend on that. The order is data_seed's.
            generator=torch.Generator(),
            # Batch normalisation cannot train on one query.
            drop_last=queries % config.batch_size == 1,
            persistent_workers=config.num_workers > 0,
            pin_memory=self.on_gpu,
        )
        if config.activation_checkpointing:
            model.enable_gradient_checkpointing()
        # Batches stay on the CPU: they are checked there, before they go to the device.
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, optimizer, loader, device_placement=[None, None, False]
        )
        total_steps = config.epochs * len(self.loader)
        warmup_steps = math.ceil(config.warmup * total_steps)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=max(total_steps - warmup_steps, 1),
            warmup_t=warmup_steps,
            warmup_prefix=True,
            warmup_lr_init=config.learning_rate / max(warmup_steps, 1),
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(self.raw_model, decay=config.ema_decay, use_warmup=True)
        if config.compile:
            # After the copy, which is only evaluated.
            self.raw_model.compile_parts()
        fields = {k: v for k, v in asdict(config).items() if k not in _FREE_FIELDS}
        self.progress = Progress(
            0,
            0,
            {
                **fields,
                "steps_an_epoch": len(self.loader),
                "features": getattr(getattr(dataset, "store", None), "description", None),
                "model": _plain_config(model),
            },
        )
        self.accelerator.register_for_checkpointing(self.ema, self.progress)
        self.accelerator.register_load_state_pre_hook(_refuse_code)

    @property
    def raw_model(self) -> MapLocalizer:
        """The model with the weights of the last step."""
        unwrapped: MapLocalizer = self.accelerator.unwrap_model(self.model)
        return unwrapped

    @property
    def ema_model(self) -> MapLocalizer:
        """The model with the moving average of the weights."""
        averaged: MapLocalizer = self.ema.module
        return averaged

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints of the run, oldest first."""
        return sorted((self.output_dir / "checkpoints").glob("epoch-*"))

    def resume(self) -> Self:
        """Continue from the last checkpoint in `output_dir`; from the start, if there is none.

        Raises:
            CheckpointError: If the checkpoint is damaged or of another configuration.
        """
        if not self.checkpoints:
            return self
        newest = self.checkpoints[-1]
        try:
            # First: weights of another model would end in a less helpful error.
            progress = newest / f"custom_checkpoint_{_PROGRESS_INDEX}.pkl"
            self.progress.check(load_tensors(progress))
            self.accelerator.load_state(str(newest))
        except CheckpointError:
            raise
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"Trainer: cannot resume from {newest}: {first_line}") from error
        return self

    def save_checkpoint(self) -> None:
        """Write the state of the run, then remove the states before it.

        Raises:
            FileError: If the place cannot be written.
        """
        older = self.checkpoints
        place = self.output_dir / "checkpoints" / f"epoch-{self.progress.epoch:04d}"
        with written_beside(place) as new:
            self.accelerator.save_state(str(new))
        for path in older:
            if path != place:
                shutil.rmtree(path, ignore_errors=True)

    def train(self) -> None:
        """Train until the configured number of epochs is done.

        Raises:
            FileError: If a checkpoint cannot be written.
            ArgumentError: If the loss is not finite; the message names the queries.
        """
        with written_beside(self.output_dir / "training.json") as new:
            new.write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        if self.progress.epoch == 0:
            # Stopped in its first epoch, this run would be resumed as the one before it.
            shutil.rmtree(self.output_dir / "checkpoints", ignore_errors=True)
        self.accelerator.init_trackers("tensorboard")
        with _ProgressBar(self) as bar:
            while self.progress.epoch < self.config.epochs:
                self._train_epoch(bar)
                self.progress.epoch += 1
                self.save_checkpoint()
                self._validate(bar)
        self.accelerator.end_training()

    def _train_epoch(self, bar: "_ProgressBar") -> None:
        self.model.train()
        self.loader.set_epoch(self.progress.epoch)
        bar.begin_epoch()
        for batch in self.loader:
            self.schedule.step_update(self.progress.step)
            loss = self._step(batch)
            self.progress.step += 1
            self.ema.update(self.raw_model, step=self.progress.step)
            bar.advance(loss, batch)
        mean_loss = bar.end_epoch()
        self.accelerator.log(
            {"loss": mean_loss, "learning_rate": self.optimizer.param_groups[0]["lr"]},
            step=self.progress.step,
        )

    def _step(self, batch: MomentBatch) -> Tensor:
        """Take one step of the optimizer.

        On a GPU the host is ahead of it, but for one wait: before the weights change, it waits
        until the forward pass is done, to see its loss. The backward pass is under way by then. (In
        half precision, accelerate's gradient scaler waits for the gradients, too.)
        """
        self.raw_model.check_values(
            batch.features,
            batch.words,
            batch.moments,
            batch.clip_seconds,
            batch.num_moments,
            batch.num_clips,
        )
        batch = batch.to(self.accelerator.device, non_blocking=True)
        with self.raw_model.without_checks(), self.accelerator.autocast():
            loss = self.model(
                batch.features,
                batch.words,
                batch.num_words,
                batch.moments,
                batch.clip_seconds,
                batch.num_moments,
                batch.num_clips,
            )
        on_host = _HostCopy(loss)
        self.accelerator.backward(loss)
        if not math.isfinite(value := on_host.read()):
            shown = ", ".join(str(qid) for qid in batch.qids[:8])
            raise ArgumentError(
                f"Trainer: expected a finite loss, got {value} at step {self.progress.step}, "
                f"queries {shown}. Lower the learning rate, or check the features of these queries."
            )
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _validate(self, bar: "_ProgressBar") -> None:
        if self.validation is None or not self.accelerator.is_main_process:
            return
        epoch = self.progress.epoch
        if self.validate_every and epoch % self.validate_every == 0:
            result = evaluate(self.ema_model, self.validation, seed=self.config.seed)
            self.accelerator.log(result.metrics, step=self.progress.step)
            bar.report(result)
        if epoch % self.config.heat_map_every == 0 or epoch == self.config.epochs:
            figure = draw_queries(self.ema_model, self.validation, [0], seed=self.config.seed)
            tracker = self.accelerator.get_tracker("tensorboard")
            tracker.writer.add_figure("validation query", figure, self.progress.step)


def _refuse_code(models: list[Any], folder: str) -> None:
    """Refuse a checkpoint that would run code: what is registered, accelerate just unpickles."""
    for path in sorted(Path(folder).glob("custom_checkpoint_*.pkl")):
        load_tensors(path)


class _HostCopy:
    """A number on its way from a device to the host, which need not wait until it reads it."""

    def __init__(self, number: Tensor) -> None:
        self.number, self.arrived = number.detach(), None
        if number.is_cuda:
            here = torch.empty_like(self.number, device="cpu", pin_memory=True)
            self.number = here.copy_(self.number, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> float:
        """Wait for the number."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.number)


def _check_writable(folder: Path) -> None:
    # Now, rather than after the first epoch.
    with written_beside(folder / ".writable") as new:
        new.touch()
    (folder / ".writable").unlink()


def _plain_config(model: MapLocalizer) -> dict[str, Any]:
    """Return the configuration of a model as JSON would hold it, without what diffusers adds."""
    fields = {name: value for name, value in model.config.items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return plain


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class _ProgressBar:
    """A rich progress bar on a terminal, a line an epoch everywhere."""

    def __init__(self, trainer: Trainer) -> None:
        progress: Any = require("rich.progress", extra="train", purpose="Trainer")
        self.trainer = trainer
        self.shown = trainer.show_progress and trainer.accelerator.is_main_process
        self.bar = progress.Progress(
            "{task.description}",
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            "loss {task.fields[loss]:.4f}",
            "{task.fields[speed]:.0f} pairs/s",
            progress.TimeRemainingColumn(),
            transient=True,
        )
        # Without a terminal, rich would print the bar's last state into the log.
        self.bar.disable = not (self.shown and self.bar.console.is_terminal)
        total = trainer.config.epochs * len(trainer.loader)
        self.task = self.bar.add_task(
            "training", total=total, completed=trainer.progress.step, loss=math.nan, speed=0
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def begin_epoch(self) -> None:
        self.began = time.perf_counter()
        self.losses: list[Tensor] = []
        self.pairs = 0
        self.shown_at = -math.inf

    def advance(self, loss: Tensor, batch: MomentBatch) -> None:
        self.losses.append(loss)
        self.pairs += len(batch) * self.trainer.accelerator.num_processes
        if not self.bar.disable:
            speed = self.pairs / (time.perf_counter() - self.began)
            self.bar.update(self.task, advance=1, speed=speed)
            # Now and then: reading it waits for the device.
            if time.monotonic() - self.shown_at > _SECONDS_BETWEEN_LOSSES:
                self.bar.update(self.task, loss=float(loss))
                self.shown_at = time.monotonic()

    def end_epoch(self) -> float:
        seconds = time.perf_counter() - self.began
        mean_loss = float(torch.stack(self.losses).mean())
        epoch, epochs = self.trainer.progress.epoch + 1, self.trainer.config.epochs
        self._print(
            f"epoch {epoch}/{epochs}  loss {mean_loss:.4f}  "
            f"{self.pairs / seconds:.0f} pairs/s  {seconds:.1f} s"
        )
        return mean_loss

    def report(self, result: Evaluation) -> None:
        self._print("  ".join(f"{name} {value:.1f}" for name, value in result.metrics.items()))

    def _print(self, line: str) -> None:
        if self.shown:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
            # Or a log file would stay empty for hours.
            self.bar.console.file.flush()
