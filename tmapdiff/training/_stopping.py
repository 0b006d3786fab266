"""Being asked to stop by a signal, and doing so at a good moment."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from typing_extensions import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_TO_FINISH = 30.0
# A launcher passes on within that time what a scheduler has sent to all processes.
SECONDS_OF_ECHO = 5.0


class StopRequest:
    """Notes SIGTERM and SIGINT (Ctrl-C) instead of letting them end the process at once.

    Used as a context manager, it asks nothing more of a second signal: that has its usual effect.
    Only a program's main thread can receive signals; elsewhere it does nothing.

    Args:
        under_launcher: Whether a launcher started the process. It passes on signals that a job
            scheduler has sent to all processes: for a while, a second one is no second request.

    Attributes:
        signal: The signal that came; None so far.
    """

    def __init__(self, under_launcher: bool = False) -> None:
        self.signal: int | None = None
        self._seconds_of_echo = SECONDS_OF_ECHO if under_launcher else 0.0
        self._came_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._note) for one in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._came_at = number, time.monotonic()
        elif time.monotonic() - self._came_at >= self._seconds_of_echo:
            self._put_back()
            signal.raise_signal(number)

    def _put_back(self) -> None:
        for one, handler in self._before.items():
            # None: set by code that is not Python's, which cannot be put back.
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        self._before = {}


def exit_code(number: int) -> int:
    """Give what a shell would report of a process that a signal ended: 128 and its number."""
    return 128 + number


def leave_stopping_to_reader(_worker: int = 0) -> None:
    """Let a process that reads data outlive a stop signal, until its reader is done with a step.

    Signals of terminals and schedulers come to all processes at once, and a training whose workers
    die has no step to finish.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)


def _end_soon(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(_SECONDS_TO_FINISH, os._exit, [128 + number])
    timer.daemon = True
    timer.start()


def end_workers(loader: Any) -> None:
    """End the worker processes of a data loader of accelerate, if it has any."""
    plain = getattr(loader, "base_dataloader", loader)
    shut_down = getattr(getattr(plain, "_iterator", None), "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
        plain._iterator = None
