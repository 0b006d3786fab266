"""What HDF5 files of strangers say of themselves, read by a process that may hang or crash."""

import json
import math
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from tmapdiff._core.limits import JSON_GROWTH, check_item_bytes, max_item_bytes
from tmapdiff.errors import FileError

_PROGRAM = Path(__file__).with_name("_hdf5_attributes_process.py")
SECONDS = 10.0  # for the attributes of one video; they take less than a millisecond
_SECONDS_TO_START = 60.0  # Python and h5py take 0.3, and more on a busy machine


class AttributeReader:
    """Reads attributes of an HDF5 file, those of one number here and others in another process.

    HDF5 keeps texts in heaps. A damaged one can hold the library in a loop for ever, or crash it,
    which the process that called it does not survive. The other process starts when it is first
    needed, and ends with the reader. After a loop or a crash it is not tried again. Threads may
    share a reader.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._damage: str | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return AttributeReader, (self.path,)  # with a process of its own

    def read(self, item: Any) -> dict[str, Any]:
        """Return the attributes of a group or dataset, as JSON would hold them.

        Raises:
            FileError: If they cannot be read, or not soon.
            SizeLimitError: If they take more memory than they may.
        """
        about = {name: item.attrs.get_id(name) for name in item.attrs}
        if all(one.shape == () and one.dtype.kind in "fiu" for one in about.values()):
            return {name: item.attrs[name].item() for name in about}
        with self._lock:  # or threads would read each other's answers
            answer = json.loads(self._ask(item.name))
        if "error" in answer:
            raise self._failure(answer["error"])
        found: dict[str, Any] = answer["attributes"]
        return found

    def close(self) -> None:
        """End the other process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            _end(process, os.getpid())

    def _ask(self, name: str) -> bytes:
        if self._damage is not None:
            raise self._failure(self._damage)
        if self._process is None:
            self._process = self._start()
            self._answer(self._process, _SECONDS_TO_START, "a process to read it did not start")
        process = self._process
        with suppress(OSError):  # it has ended: no answer will come
            process.stdin.write(json.dumps(name).encode() + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        return self._answer(process, SECONDS, "HDF5 crashed at its attributes")

    def _answer(self, process: "subprocess.Popen[bytes]", seconds: float, otherwise: str) -> bytes:
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            process.kill()

        watch = threading.Timer(seconds, give_up)
        watch.daemon = True
        watch.start()
        try:
            line: bytes = process.stdout.readline(max_item_bytes() // JSON_GROWTH + 1)  # type: ignore[union-attr]
        finally:
            watch.cancel()
        if line.endswith(b"\n"):
            return line
        self.close()
        check_item_bytes(str(self.path), "attributes", len(line) * JSON_GROWTH)
        late = f"its attributes were not read in {seconds:g} seconds"
        self._damage = late if is_late.is_set() else otherwise
        raise self._failure(self._damage)

    def _start(self) -> "subprocess.Popen[bytes]":
        # Isolated: neither the folder that one is in nor variables bring modules of their own.
        places = [place for place in sys.path if place]
        limits = [str(max_item_bytes() // JSON_GROWTH), str(math.ceil(SECONDS))]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM), str(self.path), *limits, *places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **one_thread},
        )
        weakref.finalize(self, _end, process, os.getpid())
        return process

    def _failure(self, reason: str) -> FileError:
        return FileError(f"cannot read {self.path} as HDF5: {reason}.")


def _end(process: "subprocess.Popen[bytes]", starter: int) -> None:
    if os.getpid() == starter:  # not a fork of it
        process.kill()
        process.communicate()
