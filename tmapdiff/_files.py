"""Writing files so that no half-written one is ever seen."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tmapdiff.errors import FileError


@contextmanager
def written_beside(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block may create a file or a folder there. A file that exists at `path` is replaced after
    the new one is complete; a folder that exists gets the new files one by one and keeps its
    others. When the block fails, nothing is left behind.

    Args:
        path: The file or folder.
        durable: Wait until the disk has it all: before the renaming, which else could outlive a
            loss of power that the content does not, and after. A killed process needs no such care.

    Raises:
        FileError: If the place cannot be written, for example for want of rights or disk space.
    """
    target = Path(path)
    scratch: Path | None = None
    with naming_file(target):
        try:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                # Python's own words, "File exists", would mislead: the parent is a file.
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
            new = scratch / target.name
            yield new
            if durable:
                sync_all(new)
            if new.is_dir() and target.is_dir():
                for file in (path for path in new.rglob("*") if path.is_file()):
                    place = target / file.relative_to(new)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(place)
            else:
                new.replace(target)
            if durable:
                sync(target.parent)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def naming_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of writing name the file.

    Raises:
        FileError: Instead of any error that says that something cannot be written.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileError) or not _is_write_error(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
        raise FileError(f"cannot write {path}: {reason}.") from error


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, so that no half of it is ever seen under its name."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)  # of a process that was killed
    try:
        path.rename(doomed)
    except OSError:
        return  # there is none, or it cannot be helped: it takes space, no more
    shutil.rmtree(doomed, ignore_errors=True)


def sync_all(path: Path) -> None:
    """Wait until the disk has a file, or a folder and all that is in it."""
    if path.is_dir():
        for inner in path.iterdir():
            sync_all(inner)
    sync(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if os.name == "nt" and path.is_dir():
        return  # no such thing there
    # Windows syncs what is open for writing only.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_write_error(error: Exception) -> bool:
    # safetensors and torch.save word a full disk in errors of their own.
    return (
        isinstance(error, OSError)
        or type(error).__name__ == "SafetensorError"
        or (isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error))
    )
