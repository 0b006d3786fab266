"""What a training shows on the way."""

import math
import time
from typing import TYPE_CHECKING, Any

from torch import Tensor
from typing_extensions import Self

from tmapdiff._core.checks import require
from tmapdiff.data import MomentBatch
from tmapdiff.evaluation import Evaluation

if TYPE_CHECKING:
    from tmapdiff.training.trainer import Trainer

_SECONDS_BETWEEN_LOSSES = 1.0  # on the progress bar


class ProgressBar:
    """A rich progress bar on a terminal, a line an epoch everywhere."""

    def __init__(self, trainer: "Trainer") -> None:
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
        self.begin_epoch()
        self.task = self.bar.add_task(
            "training", total=total, completed=trainer.progress.step, loss=math.nan, speed=0
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.bar.disable:  # rich before 14.3 would print an empty line
            self.bar.stop()

    def begin_epoch(self) -> None:
        self.began = time.perf_counter()
        self.pairs = 0
        self.shown_at = -math.inf

    def advance(self, loss: Tensor, batch: MomentBatch) -> None:
        self.pairs += len(batch) * self.trainer.accelerator.num_processes
        if not self.bar.disable:
            speed = self.pairs / (time.perf_counter() - self.began)
            self.bar.update(self.task, advance=1, speed=speed)
            # Now and then: reading it waits for the device.
            if time.monotonic() - self.shown_at > _SECONDS_BETWEEN_LOSSES:
                self.bar.update(self.task, loss=float(loss))
                self.shown_at = time.monotonic()

    def begin_extension(self, epochs_before: int) -> None:
        epochs, step = self.trainer.config.epochs, self.trainer.progress.step
        self._print(
            f"a run of {epochs_before} epochs is extended to {epochs}: from step {step} on, the "
            f"learning rate is that of a run of {epochs}"
        )

    def end_epoch(self, mean_loss: float) -> None:
        seconds = time.perf_counter() - self.began
        epoch, epochs = self.trainer.progress.epoch, self.trainer.config.epochs
        self._print(
            f"epoch {epoch}/{epochs}  loss {mean_loss:.4f}  "
            f"{self.pairs / seconds:.0f} pairs/s  {seconds:.1f} s"
        )

    def report(self, result: Evaluation) -> None:
        self._print("  ".join(f"{name} {value:.1f}" for name, value in result.metrics.items()))

    def _print(self, line: str) -> None:
        if self.shown:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
            # Or a log file would stay empty for hours.
            self.bar.console.file.flush()
