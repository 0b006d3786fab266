"""Training, with checkpoints that resume a run bit for bit."""

import copy
import hashlib
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from typing_extensions import Self

from tmapdiff._core.arrays import load_tensors
from tmapdiff._core.checks import (
    check_choice,
    check_int,
    first_line,
    foreign_errors,
    message,
    require,
)
from tmapdiff._core.files import SECONDS_OF_ORPHANS, naming_file, written_beside
from tmapdiff.data import MomentBatch, MomentDataset, collate_moments
from tmapdiff.data.sampling import BatchShares, EpochOrder, SeededSamples, torch_generator_for
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError
from tmapdiff.evaluation import draw_queries, evaluate
from tmapdiff.models import MapLocalizer
from tmapdiff.training._sharding import (
    GatheredWeights,
    gathered,
    prepare_sharding,
    register_forward_methods,
)
from tmapdiff.training._stopping import SignalGuard, end_workers, ignore_signals_in_worker
from tmapdiff.training.batch_norm import share_batch_norm
from tmapdiff.training.checkpoints import (
    check_checkpoint,
    checkpoint_name,
    clear_up,
    keep_checkpoints,
    list_checkpoints,
    place_in_run,
    write_checkpoint,
)
from tmapdiff.training.config import RESUME_MAY_CHANGE, TrainingConfig
from tmapdiff.training.progress import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

_PROGRESS_INDEX = 1  # second object that is registered for checkpointing
# The gradient scale starts at 2**16 and is halved at each skipped step. A gradient that is still
# not finite at 2**-8 is no overflow.
_MOST_SKIPPED_STEPS = 24


class _HostCopy:
    """Numbers that are copied from a device to the host, which waits only when it reads them."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.arrived = numbers.detach().flatten(), None
        if numbers.is_cuda:
            here = torch.empty_like(self.numbers, device="cpu", pin_memory=True)
            self.numbers = here.copy_(self.numbers, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers: list[float] = self.numbers.tolist()
        return numbers


class Trainer:
    """Trains a `MomentLocalizer`, or any other `MapLocalizer`.

    It writes to `output_dir`: `checkpoints/`, which resume a run bit for bit after any
    interruption; `history.json`, with the loss and metrics of each epoch; `tensorboard/`; and
    `training.json`, the configuration.

    Args:
        model: The localizer, with its initial weights. Presence weights are discarded.
        dataset: Training set, usually a `MomentDataset`, which `negatives` requires.
        config: Configuration of the training.
        output_dir: Folder of the run.
        validation: Data set to evaluate and draw after epochs. Defaults to none.
        validate_every: Epochs between evaluations. With None, only heat maps are drawn.
        overwrite: Whether to remove the checkpoints and history of an earlier run in `output_dir`.
            Otherwise, `train` raises a `FileError` if there is one.
        device: `cpu`, or None for accelerate's choice.
        show_progress: Whether to show a progress bar and a line per epoch.

    Raises:
        MissingDependencyError: If the extra `train` is not installed.
        ArgumentError: If the data set has fewer queries than two or than processes,
            `validate_every` is below 1, or `negatives` are requested and the data set is not a
            `MomentDataset` of several videos.
        ConfigError: If an earlier trainer in this process used another `mixed_precision`, or
            accelerate is configured for another one, for an unsupported way of sharding, for
            compilation, or to accumulate gradients.

    Attributes:
        progress: Progress of the run.
        history: For each epoch, `epoch`, `step`, `loss`, `learning_rate` and, if it was validated,
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
        for package in ("accelerate", "tensorboard"):
            require(package, extra="train", purpose="Trainer")
        filelock: Any = require("filelock", extra="train", purpose="Trainer")
        from accelerate.utils import set_seed

        if validate_every is not None:
            check_int("Trainer", "validate_every", validate_every, at_least=1)
        if config.negatives:
            if not isinstance(dataset, MomentDataset):
                got = type(dataset).__name__
                raise ArgumentError(message("Trainer", "a MomentDataset for negatives", got))
            dataset = dataset.with_negatives(config.negatives)
        self.config = config
        self.output_dir = Path(output_dir)
        self.validation = validation
        self.validate_every = validate_every
        self.show_progress = show_progress
        self.history: list[dict[str, float]] = []
        self._history_file = self.output_dir / "history.json"
        self._checkpoints = self.output_dir / "checkpoints"
        self._lock = filelock.FileLock(self.output_dir / ".lock", timeout=SECONDS_OF_ORPHANS)
        self._replaces = overwrite
        self._saved_at = time.monotonic()
        self._guard = SignalGuard()
        # How many processes request to stop, and to save.
        self._requests = _HostCopy(torch.zeros(2))
        # The last step's loss and gradient norm, its number and its batch.
        self._unchecked: tuple[_HostCopy, int, MomentBatch] | None = None
        self._shown_loss = math.nan

        self.accelerator = self._make_accelerator(device)
        fewest = max(2, self.accelerator.num_processes)  # fewer would make no batch
        queries = check_int("Trainer", "queries in the data set", len(dataset), at_least=fewest)  # type: ignore[arg-type]
        model.record_parts()
        if model.config.get("presence_weights") is not None:
            model.register_to_config(presence_weights=None)  # fitted on maps before training
        self._is_sharded = prepare_sharding(self.accelerator)
        if config.deterministic:
            # cuBLAS reads it when it starts; without it, torch rejects matrix products.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Each process must draw its own dropout. NumPy's seeds end at 2**32.
        set_seed((config.seed + self.accelerator.process_index) % 2**32)
        self.loader = self._loader_in_use = self._make_loader(dataset, queries)
        self._prepare_model(model)
        self._make_schedule()
        self.progress = Progress(self._identify(dataset, model))
        self.accelerator.register_for_checkpointing(self.ema, self.progress)
        self.accelerator.register_load_state_pre_hook(_refuse_code)

    def _make_accelerator(self, device: str | None) -> "Accelerator":
        from accelerate import Accelerator

        with foreign_errors(ConfigError, "Trainer"):  # such as a second precision in a process
            accelerator = Accelerator(
                cpu=device == "cpu",
                mixed_precision=self.config.mixed_precision,
                log_with="tensorboard",
                project_dir=str(self.output_dir),
            )
        steps, backend = accelerator.gradient_accumulation_steps, accelerator.state.dynamo_plugin
        own = self.config.mixed_precision
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
        launched = own if launched == "no" else launched  # a launch always sets it
        for name, wanted, got, instead in (
            ("gradient_accumulation_steps", 1, steps, "batch_size"),
            ("dynamo_backend", "NO", backend.backend.value, "compile"),
            ("mixed_precision", own, launched, "mixed_precision of TrainingConfig"),
        ):
            if got != wanted:  # set by `accelerate launch` or its configuration
                expected, hint = f"{name} {wanted} of accelerate", f"Set {instead} instead."
                raise ConfigError(message("Trainer", expected, got, hint))
        return accelerator

    def _make_loader(self, dataset: Dataset[Any], queries: int) -> DataLoader[Any]:
        config, accelerator = self.config, self.accelerator
        self._order = EpochOrder(queries, config.seed)
        self._batches = BatchShares(
            self._order, config.batch_size, accelerator.num_processes, accelerator.process_index
        )
        # Not prepared by accelerate, which would repeat samples to make shares equal.
        return DataLoader(
            SeededSamples(dataset),
            batch_sampler=self._batches,
            collate_fn=collate_moments,
            num_workers=config.num_workers,
            # Drawing from torch's generator would make later noise depend on the workers.
            generator=torch.Generator(),
            persistent_workers=config.num_workers > 0,
            worker_init_fn=ignore_signals_in_worker,
            pin_memory=accelerator.device.type == "cuda",
        )

    def _prepare_model(self, model: MapLocalizer) -> None:
        from timm.optim import param_groups_weight_decay
        from timm.utils import ModelEmaV3

        config, device = self.config, self.accelerator.device
        dtypes = {str(one.dtype) for one in model.parameters() if one.requires_grad}
        if half := dtypes - {"torch.float32", "torch.float64"}:
            hint = "Rounding loses small updates. Use mixed_precision instead."
            text = message("Trainer", "weights in float32 to train", ", ".join(half), hint)
            warnings.warn(text, stacklevel=3)
        ema = {"decay": config.ema_decay, "use_warmup": True}
        if self.accelerator.num_processes > 1:
            share_batch_norm(model.to(device))
        optimizer = torch.optim.AdamW(
            param_groups_weight_decay(model, config.weight_decay),
            lr=config.learning_rate,
            fused=device.type in ("cuda", "cpu"),
        )
        if config.activation_checkpointing:
            model.enable_gradient_checkpointing()
        if self._is_sharded:  # copied before sharding: the average is not sharded
            self.ema = ModelEmaV3(model, **ema)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self._is_sharded:
            register_forward_methods(self.model)
        else:
            self.ema = ModelEmaV3(self._unwrapped, **ema)
        if config.compile:  # after the copy for the average, which is only evaluated
            self._unwrapped.compile_parts()

    def _make_schedule(self) -> None:
        from timm.scheduler import CosineLRScheduler

        # It remarks that a run of a single step needs no schedule.
        logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)
        steps = self.config.epochs * len(self.loader)
        warmup_steps = math.ceil(self.config.warmup * steps)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=max(steps - warmup_steps, 1),
            warmup_t=warmup_steps,
            warmup_prefix=True,
            warmup_lr_init=self.config.learning_rate / max(warmup_steps, 1),
            t_in_epochs=False,
        )

    def _identify(self, dataset: Dataset[Any], model: MapLocalizer) -> dict[str, Any]:
        """Collect the settings that determine the run's result, in JSON types."""
        fields = {k: v for k, v in asdict(self.config).items() if k not in RESUME_MAY_CHANGE}
        of_model = {k: v for k, v in model.config.items() if not k.startswith("_")}
        of_model.pop("presence_weights", None)  # discarded; older checkpoints have them
        return {
            **fields,
            "negatives": getattr(dataset, "negatives", 0.0),
            "steps_an_epoch": len(self.loader),
            "features": getattr(getattr(dataset, "store", None), "description", None),
            "queries_sha256": _digest_of_queries(dataset),
            "model": json.loads(json.dumps(of_model)),
        }

    @property
    def raw_model(self) -> MapLocalizer:
        """The model with the weights of the last step.

        With sharded weights (FSDP2), it is a copy with gathered weights, and all processes must
        request it together.
        """
        if not self._is_sharded:
            return self._unwrapped
        whole = copy.deepcopy(self.ema_model)
        whole.load_state_dict(GatheredWeights(self._unwrapped).state_dict())
        return whole

    @cached_property
    def _unwrapped(self) -> MapLocalizer:
        # Cached, as unwrapping walks all modules, and each step needs it several times.
        # Without accelerate's autocast around `forward`, which would outlast the training.
        bare: MapLocalizer = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return bare

    @property
    def ema_model(self) -> MapLocalizer:
        """The model with the moving average of the weights."""
        averaged: MapLocalizer = self.ema.module
        return averaged

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints of the run, oldest first."""
        return list_checkpoints(self._checkpoints)

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint with the best validation metric; None if none was validated."""
        metric = self.config.best_metric
        validated = [one for one in self.history if metric in one]
        scores = {checkpoint_name(int(one["epoch"])): one[metric] for one in validated}
        saved = [path for path in self.checkpoints if path.name in scores]
        return max(saved, key=lambda path: scores[path.name], default=None)

    def resume(self, checkpoint: str | os.PathLike[str] | None = None) -> Self:
        """Continue from the last checkpoint in `output_dir`, or from the start if there is none.

        A damaged checkpoint is skipped, with a warning, for the one before.

        A run, interrupted or finished, can be extended to more epochs. The learning rate then
        follows the new number: if a finished run of 10 epochs is extended to 20, it restarts from
        its value in the middle of a run of 20.

        Args:
            checkpoint: Continue from this one of `checkpoints`, such as the `best_checkpoint`.
                `train` then removes later ones.

        Raises:
            CheckpointError: If the checkpoint has another configuration or more epochs, or all are
                damaged.
            FileError: If another process trains in `output_dir`.
        """
        with self._alone():
            damage: CheckpointError | None = None
            candidates = self.checkpoints if checkpoint is None else [Path(checkpoint)]
            for path in reversed(candidates):
                try:
                    check_checkpoint(path)
                except CheckpointError as error:
                    damage = damage or error
                    if path != candidates[0]:
                        text = "checkpoint is damaged; falling back to the previous one"
                        warnings.warn(f"Trainer: {text}. {error}", stacklevel=2)
                    continue
                self._load(path)
                break
            else:
                if damage is not None:
                    raise CheckpointError(f"Trainer: cannot resume from {damage}") from damage
        self._replaces = True  # later checkpoints
        return self

    def _load(self, checkpoint: Path) -> None:
        try:
            # First, as loading weights of another model raises a less helpful error.
            state = load_tensors(checkpoint / f"custom_checkpoint_{_PROGRESS_INDEX}.pkl")
            self.progress.check(state)
            self.accelerator.load_state(str(checkpoint))
        except CheckpointError:
            raise
        except Exception as error:
            text = f"Trainer: cannot resume from {checkpoint}: {first_line(error)}."
            raise CheckpointError(text) from error
        written = _read_history(self._history_file)
        self.history = [entry for entry in written if entry["epoch"] <= self.progress.epoch]

    def save_checkpoint(self) -> None:
        """Save the state of the run, then remove old checkpoints.

        Raises:
            FileError: If the checkpoint cannot be written; earlier ones are not affected.
            ArgumentError: If the last loss or gradient was not finite; nothing is saved.
        """
        self._check_last_step()
        progress = self.progress
        if self.accelerator.is_main_process:
            name = checkpoint_name(progress.epoch, progress.step if progress.batch else None)
            with write_checkpoint(self._checkpoints / name) as new:
                self._save_state(new)
            best = self.best_checkpoint
            newest = self.checkpoints[-self.config.keep_checkpoints :]
            keep_checkpoints(self._checkpoints, newest if best is None else [*newest, best])
        else:
            self._save_state(None)
        self.accelerator.wait_for_everyone()
        self._saved_at = time.monotonic()

    def _save_state(self, folder: Path | None) -> None:
        """Save this process's state in the folder that the main process chose."""
        place = [folder]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(place)
        self.accelerator.save_state(str(place[0]))
        self.accelerator.wait_for_everyone()

    def train(self) -> None:
        """Train until the configured number of epochs is done.

        Afterwards, the model is in evaluation mode, however training ended.

        On SIGTERM or SIGINT (Ctrl-C) to any of its processes, the run finishes the step, saves a
        checkpoint and exits. A second signal ends it immediately.

        Raises:
            FileError: If a file cannot be written, another process trains in `output_dir`, or it
                holds an earlier run, without `resume` or `overwrite`.
            ArgumentError: If the loss or a gradient is not finite. The message names the queries
                and videos of the batch. The model's weights are then damaged; checkpoints are not.
            ConfigError: If validation does not compute `best_metric`.
            CheckpointError: If processes have resumed from different checkpoints.
            SystemExit: After a signal, with 128 plus its number: 143 for SIGTERM, 130 for SIGINT.
        """
        launched = self.accelerator.num_processes > 1 or "TORCHELASTIC_RUN_ID" in os.environ
        self._guard = SignalGuard(under_launcher=launched)
        with self._alone(), self._guard, _algorithms(self.config.deterministic):
            self._begin()
            shown = self.show_progress and self.accelerator.is_main_process
            bar = tqdm(
                total=self.config.epochs * len(self.loader),
                initial=self.progress.step,
                desc="training",
                leave=False,
                disable=None if shown else True,  # None shows it on terminals only
            )
            try:
                with bar:
                    self._close_epoch()
                    while self.progress.epoch < self.config.epochs:
                        self._train_epoch(bar)
                        self.save_checkpoint()
                        self._close_epoch()
                        self._exit_if_signalled()
            finally:
                self.model.eval()
                end_workers(self._loader_in_use)
            with naming_file(self.output_dir / "tensorboard"):
                # end_training would end the process group, which a later evaluation needs.
                for tracker in self.accelerator.trackers:
                    tracker.finish()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the output folder against other runs."""
        if not self.accelerator.is_main_process:
            yield
            return
        from filelock import Timeout

        with naming_file(self._lock.lock_file):
            try:
                acquired = self._lock.acquire()
            except Timeout:
                expected = f"no other process that trains in {self.output_dir}"
                raise FileError(message("Trainer", expected, "one")) from None
        with acquired:
            yield

    def _begin(self) -> None:
        """Check that the run may start, and prepare the output folder."""
        # All accelerators of a process share these, and another one may be accumulating gradients.
        self.accelerator.gradient_accumulation_steps = 1
        self.accelerator.sync_gradients = True
        self._check_same_place()
        self._check_unused()
        if self.accelerator.is_main_process:
            with written_beside(self.output_dir / "training.json") as new:
                new.write_text(json.dumps(asdict(self.config), indent=2) + "\n")
            self._remove_later_checkpoints()
            self._write_history()
        self.accelerator.init_trackers(
            "tensorboard",
            # Drop logs of steps that were lost, which will be logged again.
            init_kwargs={"tensorboard": {"purge_step": self.progress.step + 1}},
        )
        self._saved_at = time.monotonic()

    def _check_same_place(self) -> None:
        """Raise CheckpointError if processes have resumed from different checkpoints."""
        place = torch.tensor([[self.progress.epoch, self.progress.step]])
        places = self.accelerator.gather(place.to(self.accelerator.device)).tolist()
        if any(other != places[0] for other in places):
            expected = "all processes to resume from the same checkpoint"
            hint = f"All machines must share {self.output_dir}."
            got = f"[epoch, step] {places}"
            raise CheckpointError(message("Trainer", expected, got, hint))

    def _check_unused(self) -> None:
        """Raise FileError, on all processes, if the run would overwrite an earlier one."""
        if self._replaces or self.progress.step:
            return
        earlier = [self._checkpoints.name] if self.checkpoints else []
        if _read_history(self._history_file):
            earlier.append(self._history_file.name)
        if earlier:
            expected = f"no earlier run in {self.output_dir}"
            hint = "Continue it with resume, replace it with overwrite=True, or use another folder."
            raise FileError(message("Trainer", expected, ", ".join(earlier), hint))

    def _remove_later_checkpoints(self) -> None:
        """Remove checkpoints of an earlier run and later ones of this run, lest they be resumed."""
        clear_up(self._checkpoints)
        place = self.progress.epoch, self.progress.step if self.progress.batch else 0
        keep = [path for path in self.checkpoints if place_in_run(path) <= place]
        keep_checkpoints(self._checkpoints, keep if self.progress.step else [])

    def _train_epoch(self, bar: tqdm) -> None:
        progress, loader = self.progress, self.loader
        self.model.train()
        self._order.set_epoch(progress.epoch)
        if progress.batch == 0:
            progress.losses = []
        else:
            from accelerate import skip_first_batches

            loader = skip_first_batches(loader, progress.batch)
        self._loader_in_use = loader
        began, pairs = time.perf_counter(), 0
        for batch in loader:
            self.schedule.step_update(progress.step)
            progress.losses.append(self._step(batch))
            progress.step += 1
            progress.batch += 1
            weights = GatheredWeights(self._unwrapped) if self._is_sharded else self._unwrapped
            self.ema.update(weights, step=progress.step)
            pairs += len(batch) * self.accelerator.num_processes
            bar.set_postfix_str(f"loss {self._shown_loss:.4f}", refresh=False)
            bar.update()
            if progress.batch < len(self.loader):
                if self._agreed_requests()[0]:
                    # Before saving, as a worker that ends by itself raises an error.
                    end_workers(loader)
                    self.save_checkpoint()
                    self._exit_if_signalled()
                if self._is_checkpoint_due():
                    self.save_checkpoint()
        if loader is not self.loader:
            end_workers(loader)
        progress.epoch += 1
        progress.batch = 0
        seconds = time.perf_counter() - began
        self._print(
            f"epoch {progress.epoch}/{self.config.epochs}  loss {progress.mean_loss():.4f}  "
            f"{pairs / seconds:.0f} pairs/s  {seconds:.1f} s"
        )

    def _print(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.show_progress and self.accelerator.is_main_process:
            tqdm.write(line)
            sys.stdout.flush()  # otherwise, a log file could stay empty for hours

    def _close_epoch(self) -> None:
        """Log, validate and record the finished epoch, unless it was recorded before."""
        progress = self.progress
        is_known = any(entry["epoch"] == progress.epoch for entry in self.history)
        if progress.batch or not progress.epoch or is_known:
            return
        rate = self.optimizer.param_groups[0]["lr"]
        logged = {"loss": progress.mean_loss(), "learning_rate": rate}
        self._log(logged)
        place = {"epoch": progress.epoch, "step": progress.step}
        self.history.append({**place, **logged, **self._validate()})
        self._write_history()

    def _log(self, values: dict[str, float]) -> None:
        with naming_file(self.output_dir / "tensorboard"):
            self.accelerator.log(values, step=self.progress.step)

    def _write_history(self) -> None:
        if self.accelerator.is_main_process:
            with written_beside(self._history_file, durable=True) as new:
                new.write_text(json.dumps(self.history, indent=1) + "\n")

    def _own_requests(self) -> tuple[bool, bool]:
        """Return whether this process was asked to stop, and whether its last checkpoint is old."""
        minutes = self.config.checkpoint_minutes
        is_late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return self._guard.signal is not None, is_late

    def _agreed_requests(self) -> tuple[bool, bool]:
        """Return the requests of any process, as of the last step."""
        if self.accelerator.num_processes == 1:
            return self._own_requests()
        stop, save = self._requests.read()
        return stop > 0, save > 0

    def _is_checkpoint_due(self) -> bool:
        steps = self.config.checkpoint_steps
        is_due = steps is not None and self.progress.step % steps == 0
        return is_due or self._agreed_requests()[1]

    def _exit_if_signalled(self) -> None:
        """Exit all processes if any received a signal."""
        here = torch.tensor([self._guard.signal or 0], device=self.accelerator.device)
        if number := int(self.accelerator.gather(here).max()):
            raise SystemExit(128 + number)  # the convention of shells

    def _step(self, batch: MomentBatch) -> Tensor:
        # On a GPU, the host reads loss and gradient norm one step later, lest the device wait.
        features, words, _, *annotated = _inputs(batch)
        self._unwrapped.check_values(features, words, *annotated)
        generators = self._generators(len(batch))
        batch = batch.to(self.accelerator.device, non_blocking=True)
        # 1. forward
        with self._unwrapped.without_checks(), self.accelerator.autocast():
            loss = self.model(*_inputs(batch), generators)
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))  # sums need float32
        weighted, loss = self._share_loss(loss, batch)
        # 2. backward
        self.accelerator.backward(weighted)
        self._check_last_step()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        numbers = torch.stack([loss.detach().float(), gathered(norm).float()])
        self._unchecked = _HostCopy(numbers), self.progress.step, batch
        # 3. update
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _generators(self, queries: int) -> list[torch.Generator]:
        """Make each query's source of timestep and noise, whatever the number of processes."""
        first = self._batches.rows(self.progress.batch).start
        first += self.progress.step * self._batches.size
        seed, device = self.config.seed, self.accelerator.device
        return [torch_generator_for(seed, first + row, device) for row in range(queries)]

    def _share_loss(self, loss: Tensor, batch: MomentBatch) -> tuple[Tensor, Tensor]:
        """Return the loss weighted by this process's share of all cells, and the overall mean."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return loss, loss
        cells = self._unwrapped.count_cells(batch.features, batch.num_clips)
        # Reduced with the cells. Filled on the device, as a copy would wait for the forward pass.
        requests = [cells.new_full((), int(request)) for request in self._own_requests()]
        sums = self.accelerator.reduce(torch.stack([cells, *requests]), "sum")
        self._requests = _HostCopy(sums[1:])
        weighted = loss * (processes * cells / sums[0])
        return weighted, self.accelerator.reduce(weighted.detach().clone(), "mean")

    def _check_last_step(self) -> None:
        """Raise ArgumentError if the last step's loss or gradient was not finite."""
        if self._unchecked is None:
            return
        (on_host, step, batch), self._unchecked = self._unchecked, None
        loss, norm = on_host.read()
        self._shown_loss = loss
        overflows = self.accelerator.scaler is not None and math.isfinite(loss)
        if math.isfinite(loss) and math.isfinite(norm):
            self.progress.skipped = 0
        elif overflows and self.progress.skipped < _MOST_SKIPPED_STEPS:
            self.progress.skipped += 1  # the scaler has skipped the update
        else:
            pairs = zip(batch.qids, batch.video_ids, strict=True)
            named = ", ".join(f"{qid} (video {video_id})" for qid, video_id in pairs)
            got = f"{loss} and {norm} at step {step}, queries {named}"
            hint = "Lower the learning rate, or check the features of these videos."
            if overflows:
                hint = f"{_MOST_SKIPPED_STEPS} steps before had none either. Use bf16 or no."
            expected = "a finite loss and norm of the gradient"
            raise ArgumentError(f"Trainer: expected {expected}, got {got}. {hint}")

    def _validate(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        epoch, seed = self.progress.epoch, self.config.seed
        metrics: dict[str, float] = {}
        if self.validate_every and epoch % self.validate_every == 0:
            options: Any = {"seed": seed, "accelerator": self.accelerator}
            metrics = evaluate(self.ema_model, self.validation, **options).metrics
            check_choice("Trainer", "best_metric", self.config.best_metric, metrics)
            self._log(metrics)
            self._print("  ".join(f"{name} {value:.1f}" for name, value in metrics.items()))
        is_drawn = epoch % self.config.heat_map_every == 0 or epoch == self.config.epochs
        if is_drawn and self.accelerator.is_main_process:
            figure = draw_queries(self.ema_model, self.validation, [0], seed=seed)
            tracker = self.accelerator.get_tracker("tensorboard")
            with naming_file(self.output_dir / "tensorboard"):
                tracker.writer.add_figure("validation query", figure, self.progress.step)
        return metrics


@contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """Restrict torch to deterministic algorithms, if `deterministic`."""
    cudnn = torch.backends.cudnn
    before, benchmark = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark = False  # would choose algorithms by timing
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        cudnn.benchmark = benchmark


def _digest_of_queries(dataset: Dataset[Any]) -> str | None:
    if isinstance(dataset, Subset):  # `random_split` may draw another one in a later run
        whole, rows = _digest_of_queries(dataset.dataset), list(map(int, dataset.indices))
        return whole and hashlib.sha256(f"{whole} {rows}".encode()).hexdigest()
    return getattr(dataset, "queries_sha256", None)


def _inputs(batch: MomentBatch) -> tuple[Any, ...]:
    annotated = batch.moments, batch.clip_seconds, batch.num_moments, batch.num_clips
    return batch.features, batch.words, batch.num_words, *annotated


def _read_history(path: Path) -> list[dict[str, float]]:
    try:
        entries = json.loads(path.read_text())
        return [entry for entry in entries if {"epoch", "step", "loss"} <= entry.keys()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []  # rewritten from the checkpoint


def _refuse_code(models: list[Any], folder: str) -> None:
    """Reject a checkpoint that would run code, as accelerate unpickles registered objects."""
    for path in sorted(Path(folder).glob("custom_checkpoint_*.pkl")):
        load_tensors(path)
