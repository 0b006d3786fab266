"""Graceful shutdown on SIGTERM and SIGINT."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from typing_extensions import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_TO_FINISH = 30.0


class SignalGuard:
    """Context manager that records SIGTERM and SIGINT (Ctrl-C) instead of ending the process.

    A second signal has its default effect, except `under_launcher`: launchers repeat the signals of
    a job scheduler, and kill what takes too long. Other threads than the main one get no signals.
    """

    def __init__(self, under_launcher: bool = False) -> None:
        self.signal: int | None = None
        self._under_launcher = under_launcher
        self._handlers: dict[int, Any] = {}  # to restore

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            # None: set by non-Python code, and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        elif not self._under_launcher:
            self.__exit__()
            signal.raise_signal(number)


def ignore_signals_in_worker(_worker: int = 0) -> None:
    """Keep a data worker alive for a while after stop signals, as the last step needs it.

    Terminals and schedulers signal all processes together. A worker that hangs must end at last.
    """

    def end_soon(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_SECONDS_TO_FINISH, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_soon)


def end_workers(loader: Any) -> None:
    """End the worker processes of a data loader, or of one that accelerate has wrapped."""
    plain = getattr(loader, "base_dataloader", loader)
    shut_down = getattr(getattr(plain, "_iterator", None), "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
        plain._iterator = None
