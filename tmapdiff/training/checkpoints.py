"""Checkpoints of a run on disk: written atomically, and pruned."""

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tmapdiff._core.files import remove_folder, written_beside

_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Name a checkpoint by the epochs done and, within an epoch, the steps done."""
    return f"epoch-{epoch:04d}" + ("" if step is None else f"-step-{step:08d}")


def place_in_run(checkpoint: Path) -> tuple[int, int]:
    """Return the epochs done and, within an epoch, the steps done, otherwise 0."""
    named = _NAME.fullmatch(checkpoint.name)
    return (int(named[1]), int(named[2] or 0)) if named else (0, 0)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first; they are complete, as they were renamed."""
    paths = (path for path in folder.glob("epoch-*") if _NAME.fullmatch(path.name))
    return sorted(paths, key=place_in_run)


@contextmanager
def write_checkpoint(path: Path) -> Iterator[Path]:
    """Yield a folder to write a checkpoint into; it is renamed to `path` if the block succeeds.

    Raises:
        FileError: If it cannot be written; other checkpoints are not affected.
    """
    with written_beside(path, durable=True) as new:
        yield new
        remove_folder(path)  # files of two checkpoints must not mix


def keep_checkpoints(folder: Path, checkpoints: Collection[Path]) -> None:
    """Remove all other checkpoints."""
    for path in list_checkpoints(folder):
        if path not in checkpoints:
            remove_folder(path)


def clear_up(folder: Path) -> None:
    """Remove the remains of killed processes; no other process may be writing here."""
    for left in folder.glob(".epoch-*"):
        shutil.rmtree(left, ignore_errors=True)
