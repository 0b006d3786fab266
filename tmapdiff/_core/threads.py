"""Sharing objects between threads."""

import threading
from typing import Any


class Lock:
    """A lock for `with`; copies and pickles of its owner get their own lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()
