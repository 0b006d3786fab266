"""Checkpoints of a run on disk: written atomically, verified when read, and pruned."""

import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tmapdiff._core.checks import first_line, message
from tmapdiff._core.digests import digest_of_file
from tmapdiff._core.files import remove_folder, written_beside
from tmapdiff.errors import CheckpointError

DIGESTS = "digests.json"

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

    A digest of each file shows later whether the checkpoint is still as it was written.
    """
    with written_beside(path, durable=True) as new:
        yield new
        files = sorted(file for file in new.rglob("*") if file.is_file())
        digests = {file.relative_to(new).as_posix(): digest_of_file(file) for file in files}
        (new / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
        remove_folder(path)  # files of two checkpoints must not mix


def check_checkpoint(path: Path) -> None:
    """Raise CheckpointError unless a checkpoint is as it was written."""
    expected = "the files that were written"
    try:
        digests = json.loads((path / DIGESTS).read_text())
        wrong = [name for name, one in digests.items() if digest_of_file(path / name) != one]
    except (OSError, ValueError, AttributeError) as error:
        name = Path(getattr(error, "filename", None) or DIGESTS).name
        got = f"unreadable ones: {name}: {first_line(error)}"
        raise CheckpointError(message(str(path), expected, got)) from error
    if wrong:
        raise CheckpointError(message(str(path), expected, f"another {', '.join(wrong)}"))


def keep_checkpoints(folder: Path, checkpoints: Collection[Path]) -> None:
    """Remove all other checkpoints."""
    for path in list_checkpoints(folder):
        if path not in checkpoints:
            remove_folder(path)


def clear_up(folder: Path) -> None:
    """Remove the remains of killed processes; no other process may be writing here."""
    for left in folder.glob(".epoch-*"):
        shutil.rmtree(left, ignore_errors=True)
