"""Checkpoints of a run on disk: written atomically, verified when read, and pruned."""

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tmapdiff._core.checks import first_line, message
from tmapdiff._core.files import remove_folder, written_beside
from tmapdiff.errors import CheckpointError

DIGESTS = "digests.json"
_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")
_BYTES_AT_ONCE = 2**22
_WHOLE = "the files that were written"


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Name a checkpoint by the epochs done and, within an epoch, the steps done."""
    return f"epoch-{epoch:04d}" + ("" if step is None else f"-step-{step:08d}")


class CheckpointFolder:
    """The folder with the checkpoints of one run.

    A checkpoint is written under a temporary name, with a digest of each file, and renamed when it
    is on disk. It is renamed again before it is removed. So a folder with the name of a checkpoint
    was complete once, and the digests show whether it still is.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def list(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        paths = (path for path in self.path.glob("epoch-*") if _NAME.fullmatch(path.name))
        return sorted(paths, key=_place_in_run)

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Yield a folder to write a checkpoint into; it gets its name if the block succeeds.

        Raises:
            FileError: If it cannot be written; other checkpoints are not affected.
        """
        with written_beside(self.path / name, durable=True) as new:
            yield new
            files = sorted(file for file in new.rglob("*") if file.is_file())
            digests = {file.relative_to(new).as_posix(): _digest(file) for file in files}
            (new / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
            remove_folder(self.path / name)  # files of two checkpoints must not mix

    def check(self, checkpoint: Path) -> None:
        """Raise CheckpointError unless a checkpoint is as it was written."""
        try:
            digests = json.loads((checkpoint / DIGESTS).read_text())
            wrong = [name for name, sha in digests.items() if _digest(checkpoint / name) != sha]
        except (OSError, ValueError, AttributeError) as error:
            name = Path(getattr(error, "filename", None) or DIGESTS).name
            got = f"unreadable ones: {name}: {first_line(error)}"
            raise CheckpointError(message(str(checkpoint), _WHOLE, got)) from error
        if wrong:
            raise CheckpointError(message(str(checkpoint), _WHOLE, f"another {', '.join(wrong)}"))

    def keep(self, checkpoints: Collection[Path]) -> None:
        """Remove all other checkpoints."""
        for path in self.list():
            if path not in checkpoints:
                remove_folder(path)

    def clear_up(self) -> None:
        """Remove the remains of killed processes; no other process may be writing here."""
        for left in self.path.glob(".epoch-*"):
            shutil.rmtree(left, ignore_errors=True)


def is_after(checkpoint: Path, epoch: int, step: int) -> bool:
    """Return whether a checkpoint is later than a number of epochs and steps."""
    epochs, steps = _place_in_run(checkpoint)
    return epochs > epoch or (epochs == epoch and steps > step)


def _place_in_run(checkpoint: Path) -> tuple[int, int]:
    named = _NAME.fullmatch(checkpoint.name)
    return (int(named[1]), int(named[2] or 0)) if named else (0, 0)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(_BYTES_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()
