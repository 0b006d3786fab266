"""Progress output of a training run."""

import math
import time
from typing import Any

from torch import Tensor
from typing_extensions import Self

from tmapdiff._core.checks import require

_SECONDS_BETWEEN_LOSSES = 1.0


class ProgressBar:
    """A rich progress bar on a terminal; one line per epoch otherwise."""

    def __init__(self, steps: int, done: int, shown: bool) -> None:
        progress: Any = require("rich.progress", extra="train", purpose="Trainer")
        self.shown = shown
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
        self.bar.disable = not (shown and self.bar.console.is_terminal)
        fields = {"loss": math.nan, "speed": 0}
        self.task = self.bar.add_task("training", total=steps, completed=done, **fields)
        self.begin_epoch()

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

    def advance(self, loss: Tensor, pairs: int) -> None:
        self.pairs += pairs
        if self.bar.disable:
            return
        self.bar.update(self.task, advance=1, speed=self.pairs / self._seconds())
        # Not every step, as reading the loss waits for the device.
        if time.monotonic() - self.shown_at > _SECONDS_BETWEEN_LOSSES:
            self.bar.update(self.task, loss=float(loss))
            self.shown_at = time.monotonic()

    def end_epoch(self, epoch: int, epochs: int, mean_loss: float) -> None:
        seconds = self._seconds()
        self.print(
            f"epoch {epoch}/{epochs}  loss {mean_loss:.4f}  "
            f"{self.pairs / seconds:.0f} pairs/s  {seconds:.1f} s"
        )

    def print(self, line: str) -> None:
        if self.shown:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
            # Otherwise, a log file could stay empty for hours.
            self.bar.console.file.flush()

    def _seconds(self) -> float:
        return time.perf_counter() - self.began
