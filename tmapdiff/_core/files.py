"""Atomic writing of files and folders, and listing of folders."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tmapdiff._core.checks import first_line
from tmapdiff.errors import FileError

# File name patterns by subfolder; '' is the folder itself.
FilesOf = Mapping[str, re.Pattern[str]]
# The other files are not found without these, so they are removed first and added last.
_OPENING = ("model_index.json", "config.json")
# Workers check every 5 seconds whether their parent was killed. Until then they hold its locks,
# unless filelock is recent enough to release them in forks.
SECONDS_OF_ORPHANS = 7.0


@contextmanager
def written_beside(
    path: str | os.PathLike[str], *, durable: bool = False, replaces: FilesOf | None = None
) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds.

    The block may create a file or a folder. An existing file is replaced. An existing folder gets
    the new files; it loses those that `replaces` matches by subfolder, and keeps all others. If the
    block fails, or a file cannot be moved, nothing changes, and the error names the file.

    `durable` flushes to disk before and after renaming, to survive a power loss. It is not needed
    to survive a killed process.
    """
    target = Path(path)
    beside = target.parent
    if target.name in ("", ".."):  # the current folder or a parent: write inside it
        beside = target = target.resolve()
    scratch: Path | None = None
    with naming_file(target):
        try:
            try:
                beside.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                # Python's message, "File exists", would mislead: the parent is a file.
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            scratch = Path(tempfile.mkdtemp(dir=beside, prefix=f".{target.name[:40]}."))
            new = scratch / target.name
            yield new
            if durable:
                sync_all(new)
            if new.is_dir() and target.is_dir():
                _exchange(new, target, Path(tempfile.mkdtemp(dir=scratch)), replaces or {})
            else:
                new.replace(target)
            if durable:
                sync(target.parent)
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)


def _exchange(new: Path, target: Path, old: Path, replaces: FilesOf) -> None:
    """Move the old files out of a folder, then the new ones in.

    A killed process leaves either some old or some new files, never a mix, and without the opening
    file that makes them loadable.
    """
    come = [file.relative_to(new) for file in new.rglob("*") if file.is_file()]
    go = {place for place in come if os.path.lexists(target / place)}
    for folder, names in replaces.items():
        with suppress(FileNotFoundError, NotADirectoryError):
            here = (file for file in (target / folder).iterdir() if names.fullmatch(file.name))
            go |= {file.relative_to(target) for file in here if not file.is_dir()}
    _move(
        [(target / place, old / place) for place in sorted(go, key=_order)]
        + [(new / place, target / place) for place in sorted(come, key=_order, reverse=True)]
    )
    for folder in replaces:
        if folder:
            with suppress(OSError):  # it does not exist or is not empty
                (target / folder).rmdir()


def _order(place: Path) -> tuple[int, bool, str]:
    return len(place.parts), place.name not in _OPENING, place.name


def _move(moves: Iterable[tuple[Path, Path]]) -> None:
    """Move all files, or none on failure."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            source.replace(place)
            done.append((source, place))
    except BaseException:
        for source, place in reversed(done):
            place.replace(source)
        raise


@contextmanager
def naming_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert write errors to a FileError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileError) or not _is_write_error(error):
            raise
        raise FileError(f"cannot write {path}: {first_line(error)}.") from error


def folder_to_save_in(who: str, place: str | os.PathLike[str]) -> Path:
    """Return a folder's path; raise FileError if it is a file."""
    if os.path.isfile(place):
        raise FileError(f"{who}: expected a folder to save in, got {os.fspath(place)}.")
    return Path(place)


def is_hidden(name: str) -> bool:
    """Whether a file name is hidden, such as the `._x` that macOS adds to `x`."""
    return name.startswith(".")


def list_visible(folder: str | os.PathLike[str]) -> list[Path]:
    """List the contents of a folder without hidden files, `film10` after `film9`."""

    def natural(path: Path) -> tuple[list[str | int], str]:
        parts = re.split(r"(\d+)", path.name)
        return [int(one) if one.isdecimal() else one for one in parts], path.name

    try:
        visible = (path for path in Path(folder).iterdir() if not is_hidden(path.name))
        return sorted(visible, key=natural)
    except OSError as error:
        raise FileError(f"cannot read the folder {folder}: {first_line(error)}.") from error


def remove_folder(path: Path) -> None:
    """Remove a folder if it exists, by renaming it first so that it is never half removed."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a killed process
    try:
        path.rename(doomed)
    except OSError:
        return  # it does not exist, or stays and only takes space
    shutil.rmtree(doomed, ignore_errors=True)


def sync_all(path: Path) -> None:
    """Flush a file, or a folder with all its contents, to disk."""
    if path.is_dir():
        for inner in path.iterdir():
            sync_all(inner)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # not supported
    # Windows only syncs files that are open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_write_error(error: Exception) -> bool:
    # safetensors and torch.save raise their own errors when the disk is full.
    of_torch = "PytorchStreamWriter", "inline_container.cc", "iostream error"
    return (
        isinstance(error, OSError)
        or type(error).__name__ == "SafetensorError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in of_torch))
    )
