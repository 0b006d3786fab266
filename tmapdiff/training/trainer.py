"""Training on accelerate: mixed precision, EMA, checkpoints that resume exactly."""

import copy
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self

from tmapdiff._core.arrays import load_tensors
from tmapdiff._core.checks import (
    check_choice,
    check_int,
    first_line,
    message,
    require,
)
from tmapdiff._core.files import SECONDS_OF_ORPHANS, naming_file, written_beside
from tmapdiff.data import MomentBatch, collate_moments
from tmapdiff.data.sampling import (
    BatchShares,
    EpochOrder,
    SeededSamples,
    torch_generator_for,
)
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError
from tmapdiff.evaluation import draw_queries, evaluate
from tmapdiff.models import MapLocalizer
from tmapdiff.training._host_copy import HostCopy
from tmapdiff.training._progress_bar import ProgressBar
from tmapdiff.training._sharding import (
    GatheredWeights,
    gathered,
    prepare_sharding,
    register_forward_methods,
)
from tmapdiff.training._stopping import (
    StopRequest,
    end_workers,
    exit_code,
    leave_stopping_to_reader,
)
from tmapdiff.training.batch_norm import share_batch_norm
from tmapdiff.training.checkpoints import CheckpointFolder, checkpoint_name, is_after
from tmapdiff.training.config import FREE_FIELDS, TrainingConfig
from tmapdiff.training.progress import Progress

_PROGRESS_INDEX = 1  # second of what is registered for checkpointing
# The gradient scaler starts at 2**16 and halves it at each step that it skips: a gradient that is
# not finite at 2**-8 has not overflowed.
_MOST_SKIPPED_STEPS = 24


class Trainer:
    """Trains a `MomentLocalizer`, or any other `MapLocalizer`.

    Keeps in `output_dir`: `checkpoints/`, with all that a run needs to continue as if it had not
    stopped, to the bit, whenever and however it did; `history.json`, with the loss and the metrics
    of each epoch; `tensorboard/`; and `training.json`, the configuration.

    Args:
        model: The localizer, with its initial weights.
        dataset: What to train on, usually a `MomentDataset`.
        config: How to train.
        output_dir: Folder of the run.
        validation: Data set to evaluate and draw after epochs. None, if None.
        validate_every: Epochs between evaluations; the heat map has its own rhythm. If None, the
            heat map is all.
        overwrite: Whether a new run removes the checkpoints and the history of an earlier one in
            `output_dir`; it is refused, if not.
        device: `cpu`, or whatever accelerate chooses, if None.
        show_progress: Whether to show a progress bar and a line an epoch.

    Raises:
        MissingDependencyError: If the extra `train` is not installed.
        ArgumentError: If the data set has fewer than two queries, or `validate_every` is below 1.
        ConfigError: If another training of this process has another `mixed_precision`, or
            accelerate is to divide the model in a way that it cannot be divided in.
        FileError: If `output_dir` cannot be written.

    Attributes:
        progress: Where the run is.
        history: For each epoch `epoch`, `step`, `loss`, `learning_rate` and, if it was validated,
            the metrics.

    Example:
        >>> config = TrainingConfig(epochs=2)
        >>> trainer = Trainer(model, dataset, config, "runs/first")  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.ema_model.save_pretrained("runs/first/model")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: MapLocalizer,
        dataset: Dataset[Any],
        config: TrainingConfig,
        output_dir: str | os.PathLike[str],
        *,
        validation: Dataset[Any] | None = None,
        validate_every: int | None = 1,
        overwrite: bool = False,
        device: str | None = None,
        show_progress: bool = True,
    ) -> None:
        accelerate: Any = require("accelerate", extra="train", purpose="Trainer")
        filelock: Any = require("filelock", extra="train", purpose="Trainer")
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
        self.history: list[dict[str, float]] = []
        self._replaces = overwrite
        self._extends: int | None = None  # epochs of the run that is extended
        self._loader_in_use: Any = None
        self._folder = CheckpointFolder(self.output_dir / "checkpoints")
        self._lock = filelock.FileLock(self.output_dir / ".lock", timeout=SECONDS_OF_ORPHANS)
        self._unchecked: _GradientNorm | None = None
        self._stop = StopRequest()
        self._saved_at = time.monotonic()
        self._wishes = HostCopy(torch.zeros(2))
        if validate_every is not None:
            check_int("Trainer", "validate_every", validate_every, at_least=1)
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
        )
        self._is_sharded = prepare_sharding(self.accelerator)
        if config.deterministic:
            # Read when cuBLAS starts, and without it torch would refuse its products.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.accelerator.is_main_process:
            _check_writable(self.output_dir)
        # Of what is drawn in the model, such as dropout: processes must not draw the same.
        utils.set_seed(config.seed, device_specific=True)
        self.on_gpu = self.accelerator.device.type == "cuda"
        if self.accelerator.num_processes > 1:
            share_batch_norm(model.to(self.accelerator.device))
        optimizer = torch.optim.AdamW(
            param_groups_weight_decay(model, config.weight_decay),
            lr=config.learning_rate,
            fused=self.on_gpu or self.accelerator.device.type == "cpu",
        )
        self._order = EpochOrder(queries, config.seed)
        self._batches = BatchShares(
            self._order,
            config.batch_size,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        # Not for accelerate to prepare: it would repeat samples where shares are not equal.
        self.loader = DataLoader(
            SeededSamples(dataset),
            batch_sampler=self._batches,
            collate_fn=collate_moments,
            num_workers=config.num_workers,
            # Of its own: the loader would draw from torch's once an epoch, or with workers once a
            # process, and the noise after it would depend on that.
            generator=torch.Generator(),
            persistent_workers=config.num_workers > 0,
            worker_init_fn=leave_stopping_to_reader,
            pin_memory=self.on_gpu,
        )
        if config.activation_checkpointing:
            model.enable_gradient_checkpointing()
        ema = {"decay": config.ema_decay, "use_warmup": True}
        if self._is_sharded:
            # Before: what is divided among processes cannot be copied. The average is not divided.
            self.ema = ModelEmaV3(model, **ema)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self._is_sharded:
            register_forward_methods(self.model)
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
        if not self._is_sharded:
            self.ema = ModelEmaV3(self._unwrapped, **ema)
        if config.compile:
            # After the copy, which is only evaluated.
            self._unwrapped.compile_parts()
        fields = {k: v for k, v in asdict(config).items() if k not in FREE_FIELDS}
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
        """The model with the weights of the last step.

        Where weights are divided among processes (FSDP2), a copy with whole ones, for which all
        processes must ask.
        """
        if not self._is_sharded:
            return self._unwrapped
        whole = copy.deepcopy(self.ema_model)
        whole.load_state_dict(GatheredWeights(self._unwrapped).state_dict())
        return whole

    @cached_property
    def _unwrapped(self) -> MapLocalizer:
        # Kept: it is asked for several times a step, and looking for it goes through all modules.
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
        return self._folder.list()

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint that was best in validation; None, if there is none that was validated."""
        name = self.config.best_metric
        validated = {
            checkpoint_name(int(entry["epoch"])): entry[name]
            for entry in self.history
            if name in entry
        }
        there = [path for path in self.checkpoints if path.name in validated]
        return max(there, key=lambda path: validated[path.name], default=None)

    def resume(self, checkpoint: str | os.PathLike[str] | None = None) -> Self:
        """Continue from the last checkpoint in `output_dir`; from the start, if there is none.

        A checkpoint that is not as it was written is left out with a warning, which names it, and
        the one before it is taken.

        A run may get more epochs than it had, be it finished or interrupted. The learning rate is a
        function of the step and of the number of epochs: the steps that are done had that of the
        old number, those that follow have that of the new one. So where a finished run is extended
        from 10 epochs to 20, the learning rate, which had fallen to zero, starts again from what
        it is in the middle of a run of 20.

        Args:
            checkpoint: Continue from this one of `checkpoints`, such as the `best_checkpoint`. The
                later ones are removed when training goes on.

        Raises:
            CheckpointError: If the checkpoint is of another configuration or of more epochs, or
                none is whole.
            FileError: If another process trains in `output_dir`.
        """
        with self._alone():
            wanted = self.checkpoints if checkpoint is None else [Path(checkpoint)]
            damage: CheckpointError | None = None
            for path in reversed(wanted):
                try:
                    self._folder.check(path)
                except CheckpointError as error:
                    damage = damage or error
                    if path != wanted[0]:
                        text = f"Trainer: a checkpoint is damaged, the one before is taken. {error}"
                        warnings.warn(text, stacklevel=2)
                    continue
                self._load(path)
                break
            else:
                if damage is not None:
                    raise CheckpointError(f"Trainer: cannot resume from {damage}") from damage
        self._replaces = True  # later checkpoints than the one that was taken
        return self

    def _load(self, checkpoint: Path) -> None:
        try:
            # First: weights of another model would end in a less helpful error.
            progress = checkpoint / f"custom_checkpoint_{_PROGRESS_INDEX}.pkl"
            state = load_tensors(progress)
            self.progress.check(state)
            self.accelerator.load_state(str(checkpoint))
            epochs = state["config"]["epochs"]
            self._extends = epochs if epochs < self.config.epochs else None
        except CheckpointError:
            raise
        except Exception as error:
            text = f"Trainer: cannot resume from {checkpoint}: {first_line(error)}."
            raise CheckpointError(text) from error
        self.history = [
            entry
            for entry in _read_history(self._history_file)
            if entry["epoch"] <= self.progress.epoch
        ]

    def save_checkpoint(self) -> None:
        """Write the state of the run, then remove those that need not be kept.

        Raises:
            FileError: If the place cannot be written; the checkpoints before are as they were.
            ArgumentError: If the last gradient was not finite: the checkpoints before are better.
        """
        self._check_gradient()
        progress = self.progress
        name = checkpoint_name(progress.epoch, progress.step if progress.batch else None)
        if self.accelerator.is_main_process:
            with self._folder.write(name) as new:
                self._save_state(new)
            newest = self.checkpoints[-self.config.keep_checkpoints :]
            best = [] if self.best_checkpoint is None else [self.best_checkpoint]
            self._folder.keep({*newest, *best})
        else:
            self._save_state(None)
        self.accelerator.wait_for_everyone()
        self._saved_at = time.monotonic()

    def _save_state(self, folder: Path | None) -> None:
        """Write this process's part; the main process tells the others where."""
        place = [None if folder is None else str(folder)]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(place)
        self.accelerator.save_state(place[0])
        self.accelerator.wait_for_everyone()

    def train(self) -> None:
        """Train until the configured number of epochs is done.

        The model is then in evaluation mode, however training ended.

        On SIGTERM or SIGINT (Ctrl-C), it finishes the step, writes a checkpoint and exits; a second
        signal ends it at once. Of several processes, it is enough that one gets the signal.

        Raises:
            FileError: If a file cannot be written, another process trains in `output_dir`, or that
                holds an earlier run and neither `resume` was called nor `overwrite` given.
            ArgumentError: If the loss or a gradient is not finite; the message names the queries
                and videos of the batch, and the checkpoints before stay.
            ConfigError: If the validation gives no `best_metric`.
            CheckpointError: If processes of the run have resumed from different checkpoints.
            SystemExit: If asked to stop, with 128 and the number of the signal: 143 of SIGTERM, 130
                of SIGINT.
        """
        launched = self.accelerator.num_processes > 1 or "TORCHELASTIC_RUN_ID" in os.environ
        self._stop = StopRequest(under_launcher=launched)
        with self._alone(), self._stop, self._arithmetic():
            self._check_same_place()
            self._check_unused()
            if self.accelerator.is_main_process:
                with written_beside(self.output_dir / "training.json") as new:
                    new.write_text(json.dumps(asdict(self.config), indent=2) + "\n")
                self._begin_where_resumed()
            self.accelerator.init_trackers(
                "tensorboard",
                # What was logged of steps that were lost is not to be drawn twice.
                init_kwargs={"tensorboard": {"purge_step": self.progress.step + 1}},
            )
            self._saved_at = time.monotonic()
            try:
                with ProgressBar(self) as bar:
                    if self._extends is not None:
                        bar.begin_extension(self._extends)
                    self._close_epoch(bar)
                    while self.progress.epoch < self.config.epochs:
                        self._train_epoch(bar)
                        self.save_checkpoint()
                        self._close_epoch(bar)
                        if self._signals_of_all():
                            self._exit()
            finally:
                self.model.eval()
                end_workers(self._loader_in_use)
            with naming_file(self.output_dir / "tensorboard"):
                # Not end_training: processes that evaluate afterwards still need each other.
                for tracker in self.accelerator.trackers:
                    tracker.finish()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other runs out of the output folder."""
        if not self.accelerator.is_main_process:
            yield
            return
        import filelock

        with naming_file(self._lock.lock_file):
            try:
                self._lock.acquire()
            except filelock.Timeout:
                expected = f"to be the only process that trains in {self.output_dir}"
                raise FileError(message("Trainer", expected, "another one")) from None
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Let torch compute as the configuration says."""
        if not self.config.deterministic:
            yield
            return
        cudnn = torch.backends.cudnn
        before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            cudnn.benchmark,
        )
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark = False  # would choose algorithms by the clock
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.benchmark = before[2]

    def _check_same_place(self) -> None:
        """Refuse to train when processes have resumed from different checkpoints, or from none."""
        place = torch.tensor([self.progress.epoch, self.progress.step])
        places = self.accelerator.gather(place[None].to(self.accelerator.device)).tolist()
        if any(one != places[0] for one in places):
            raise CheckpointError(
                "Trainer: expected all processes to resume from one checkpoint, got "
                + ", ".join(f"epoch {epoch} step {step}" for epoch, step in places)
                + f". All machines must share {self.output_dir}."
            )

    def _check_unused(self) -> None:
        """Refuse to begin a run where an earlier one would be lost: on all processes alike."""
        if self._replaces or self.progress.step:
            return
        found = [self._folder.path.name] if self.checkpoints else []
        if _read_history(self._history_file):
            found.append(self._history_file.name)
        if found:
            expected = f"no earlier run in {self.output_dir}"
            hint = "Continue it with resume, replace it with overwrite=True, or use another folder."
            raise FileError(message("Trainer", expected, ", ".join(found), hint))

    def _begin_where_resumed(self) -> None:
        """Remove what an earlier run, or a later part of this one, left: it would be resumed."""
        progress = self.progress
        self._folder.clear_up()
        later = {
            path
            for path in self.checkpoints
            if progress.step == 0 or is_after(path, progress.epoch, _step_within(progress))
        }
        self._folder.keep(set(self.checkpoints) - later)
        self._write_history()

    def _train_epoch(self, bar: ProgressBar) -> None:
        progress, loader = self.progress, self.loader
        self.model.train()
        self._order.set_epoch(progress.epoch)
        if progress.batch == 0:
            progress.losses = []
        else:
            from accelerate import skip_first_batches

            loader = skip_first_batches(loader, progress.batch)
        self._loader_in_use = loader
        bar.begin_epoch()
        for batch in loader:
            self.schedule.step_update(progress.step)
            progress.losses.append(self._step(batch))
            progress.step += 1
            progress.batch += 1
            weights = GatheredWeights(self._unwrapped) if self._is_sharded else self._unwrapped
            self.ema.update(weights, step=progress.step)
            bar.advance(progress.losses[-1], batch)
            if progress.batch < len(self.loader):
                stops, _ = self._agreed_wishes()
                if stops:
                    # Before saving: a worker that ends by itself would be an error.
                    end_workers(loader)
                    self.save_checkpoint()
                    self._exit()
                if self._is_checkpoint_due():
                    self.save_checkpoint()
        if loader is not self.loader:
            end_workers(loader)
        progress.epoch += 1
        progress.batch = 0

    def _close_epoch(self, bar: ProgressBar) -> None:
        """Log, validate and write down the epoch that is done, unless that was done before."""
        progress = self.progress
        is_known = any(entry["epoch"] == progress.epoch for entry in self.history)
        if progress.batch or not progress.epoch or is_known:
            return
        loss, learning_rate = progress.mean_loss(), self.optimizer.param_groups[0]["lr"]
        entry: dict[str, float] = {"epoch": progress.epoch, "step": progress.step}
        entry |= {"loss": loss, "learning_rate": learning_rate}
        self._log({"loss": loss, "learning_rate": learning_rate})
        bar.end_epoch(loss)
        entry |= self._validate(bar)
        self.history.append(entry)
        self._write_history()

    def _log(self, values: dict[str, float]) -> None:
        with naming_file(self.output_dir / "tensorboard"):
            self.accelerator.log(values, step=self.progress.step)

    @property
    def _history_file(self) -> Path:
        return self.output_dir / "history.json"

    def _write_history(self) -> None:
        if self.accelerator.is_main_process:
            with written_beside(self._history_file, durable=True) as new:
                new.write_text(json.dumps(self.history, indent=1) + "\n")

    def _wishes_here(self) -> tuple[bool, bool]:
        """Tell whether this process was asked to stop, and whether its last checkpoint is old."""
        minutes = self.config.checkpoint_minutes
        is_late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return self._stop.signal is not None, is_late

    def _agreed_wishes(self) -> tuple[bool, bool]:
        """Give the wishes of any process, which came with the last step: the same for all."""
        if self.accelerator.num_processes == 1:
            return self._wishes_here()
        stops, is_late = self._wishes.read()
        return stops > 0, is_late > 0

    def _is_checkpoint_due(self) -> bool:
        _, is_late = self._agreed_wishes()
        steps = self.config.checkpoint_steps
        return is_late or (steps is not None and self.progress.step % steps == 0)

    def _signals_of_all(self) -> list[int]:
        """Give the signals that processes got, one of each at most; they wait for each other."""
        here = torch.tensor([self._stop.signal or 0], device=self.accelerator.device)
        return [number for number in self.accelerator.gather(here).tolist() if number]

    def _exit(self) -> None:
        raise SystemExit(exit_code(max(self._signals_of_all())))

    def _step(self, batch: MomentBatch) -> Tensor:
        """Take one step of the optimizer.

        On a GPU the host is ahead of it, but for one wait: before the weights change, it waits
        until the forward pass is done, to see its loss. The backward pass is under way by then. So
        the gradient's norm is looked at a step later; till then, the optimizer itself leaves the
        weights alone if it is not finite.
        """
        self._unwrapped.check_values(
            batch.features,
            batch.words,
            batch.moments,
            batch.clip_seconds,
            batch.num_moments,
            batch.num_clips,
        )
        generators = self._generators(len(batch))
        batch = batch.to(self.accelerator.device, non_blocking=True)
        with self._unwrapped.without_checks(), self.accelerator.autocast():
            loss = self.model(
                batch.features,
                batch.words,
                batch.num_words,
                batch.moments,
                batch.clip_seconds,
                batch.num_moments,
                batch.num_clips,
                generators,
            )
        weighted, loss = self._share_loss(loss, batch)
        on_host = HostCopy(loss)
        self.accelerator.backward(weighted)
        (value,) = on_host.read()
        self._check_gradient()
        if not math.isfinite(value):
            raise ArgumentError(
                f"Trainer: expected a finite loss, got {value} at step {self.progress.step}, "
                f"{_named(batch)}. Lower the learning rate, or check the features of these videos."
            )
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        norm = gathered(norm)
        self._unchecked = _GradientNorm(HostCopy(norm), self.progress.step, batch)
        if not self._is_sharded:
            with _skipping_unless_finite(self.optimizer, norm):
                self.optimizer.step()
        elif self.optimizer.scaler is not None or math.isfinite(float(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _generators(self, queries: int) -> list[torch.Generator]:
        """Make a source of timestep and noise a query: the same on any number of processes."""
        first = self._batches.rows(self.progress.batch).start
        first += self.progress.step * self._batches.size
        seed, device = self.config.seed, self.accelerator.device
        return [torch_generator_for(seed, first + row, device) for row in range(queries)]

    def _share_loss(self, loss: Tensor, batch: MomentBatch) -> tuple[Tensor, Tensor]:
        """Weigh the loss so that gradients average to those of all processes' cells; give its mean.

        The loss is a mean over the process's own cells, and processes may differ in their number.
        With these numbers goes what a process wishes to do after the step, for all to do it.
        """
        processes = self.accelerator.num_processes
        if processes == 1:
            return loss, loss
        cells = self._unwrapped.count_cells(batch.features, batch.num_clips)
        # Numbers that are filled in, as a copy from the host would wait for the forward pass.
        wishes = [cells.new_full((), int(wish)) for wish in self._wishes_here()]
        total, *wishes = self.accelerator.reduce(torch.stack([cells, *wishes]), "sum").unbind()
        self._wishes = HostCopy(torch.stack(wishes))
        weighted = loss * (processes * cells / total)
        return weighted, self.accelerator.reduce(weighted.detach().clone(), "mean")

    def _check_gradient(self) -> None:
        """Look at the norm of the last step's gradient, which has been computed meanwhile."""
        last, self._unchecked = self._unchecked, None
        if last is None:
            return
        (norm,) = last.norm.read()
        if math.isfinite(norm):
            self.progress.skipped = 0
            return
        self.progress.skipped += 1
        where = f"at step {last.step}, {_named(last.batch)}"
        if self.accelerator.scaler is None:
            raise ArgumentError(
                f"Trainer: expected a finite gradient, got one of norm {norm} {where}. "
                "Lower the learning rate, or check the features of these videos."
            )
        if self.progress.skipped > _MOST_SKIPPED_STEPS:
            raise ArgumentError(
                f"Trainer: expected a finite gradient, got none in {self.progress.skipped} steps, "
                f"last {where}. Use mixed_precision bf16 or no, or lower the learning rate."
            )

    def _validate(self, bar: ProgressBar) -> dict[str, float]:
        """Evaluate and draw the validation set, if that is due; return the metrics."""
        if self.validation is None:
            return {}
        epoch, metrics = self.progress.epoch, {}
        if self.validate_every and epoch % self.validate_every == 0:
            result = evaluate(
                self.ema_model,
                self.validation,
                seed=self.config.seed,
                accelerator=self.accelerator,
            )
            metrics = result.metrics
            check_choice("Trainer", "best_metric", self.config.best_metric, metrics)
            self._log(metrics)
            bar.report(result)
        drawn = epoch % self.config.heat_map_every == 0 or epoch == self.config.epochs
        if drawn and self.accelerator.is_main_process:
            figure = draw_queries(self.ema_model, self.validation, [0], seed=self.config.seed)
            tracker = self.accelerator.get_tracker("tensorboard")
            with naming_file(self.output_dir / "tensorboard"):
                tracker.writer.add_figure("validation query", figure, self.progress.step)
        return metrics


@dataclass(frozen=True)
class _GradientNorm:
    """The norm of a step's gradient, to be looked at later, and what it came of."""

    norm: HostCopy
    step: int
    batch: MomentBatch


@contextmanager
def _skipping_unless_finite(optimizer: Any, norm: Tensor) -> Iterator[None]:
    """Let a step of the optimizer do nothing if a norm is not finite, without waiting for it.

    Fused optimizers can do that for gradient scalers, which use it themselves if there is one.
    """
    plain = optimizer.optimizer
    if optimizer.scaler is not None or not plain.defaults.get("fused"):
        yield
        return
    plain.found_inf = (~norm.isfinite()).float()
    try:
        yield
    finally:
        del plain.found_inf


def _named(batch: MomentBatch) -> str:
    """Name the queries and videos of a batch."""
    pairs = zip(batch.qids, batch.video_ids, strict=True)
    return "queries " + ", ".join(f"{qid} (video {video_id})" for qid, video_id in pairs)


def _step_within(progress: Progress) -> int:
    return progress.step if progress.batch else 0


def _read_history(path: Path) -> list[dict[str, float]]:
    try:
        entries = json.loads(path.read_text())
        return [entry for entry in entries if {"epoch", "step", "loss"} <= entry.keys()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []  # made anew where the checkpoint tells


def _refuse_code(models: list[Any], folder: str) -> None:
    """Refuse a checkpoint that would run code: what is registered, accelerate just unpickles."""
    for path in sorted(Path(folder).glob("custom_checkpoint_*.pkl")):
        load_tensors(path)


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
