"""Writing files so that no half-written one is ever seen, and listing folders."""

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

# Patterns of names of files, by subfolder; '' is the folder itself.
FilesOf = Mapping[str, re.Pattern[str]]
# Without these the other files are not found: they go first and come last.
_OPENING = ("model_index.json", "config.json")
# Workers of a process that was killed look every 5 seconds whether it is there. Till then they hold
# its locks, where filelock does not take them away from forks, as it does in its later releases.
SECONDS_OF_ORPHANS = 7.0
_LONGEST_NAMED = 200  # bytes of a name that goes into that of a temporary folder: 255 are allowed


@contextmanager
def written_beside(
    path: str | os.PathLike[str], *, durable: bool = False, replaces: FilesOf | None = None
) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block may create a file or a folder there. A file that exists at `path` is replaced after
    the new one is complete; a folder that exists gets the new files in place of those that they
    replace, and of those that `replaces` names by subfolder, and keeps its others. When the block
    fails, or a file cannot be put into its place, everything is as before, and the error names it.

    With `durable`, the disk has it all before the renaming, which else could outlive a loss of
    power that the content does not, and after. A killed process needs no such care.
    """
    target = Path(path)
    beside = target.parent
    if target.name in ("", ".."):  # the current folder, or one above: from within
        beside = target = target.resolve()
    scratch: Path | None = None
    with naming_file(target):
        try:
            try:
                beside.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                # Python's own words, "File exists", would mislead: the parent is a file.
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            scratch = Path(tempfile.mkdtemp(dir=beside, prefix=_scratch_prefix(target)))
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

    A process that is killed meanwhile leaves some of the old files or some of the new ones, never
    both, and not the one without which the others are not found.
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
            with suppress(OSError):  # there is none, or something is in it
                (target / folder).rmdir()


def _order(place: Path) -> tuple[int, bool, str]:
    return len(place.parts), place.name not in _OPENING, place.name


def _move(moves: Iterable[tuple[Path, Path]]) -> None:
    """Move files, all or none of them."""
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
    """Let errors of writing name the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileError) or not _is_write_error(error):
            raise
        raise FileError(f"cannot write {path}: {first_line(error)}.") from error


def folder_to_save_in(who: str, place: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that is there or can be made."""
    if os.path.isfile(place):
        raise FileError(f"{who}: expected a folder to save in, got {os.fspath(place)}.")
    return Path(place)


def is_hidden(name: str) -> bool:
    """Tell by its name whether a file is not the user's: `._x` is what macOS adds to `x`."""
    return name.startswith(".")


def list_visible(folder: str | os.PathLike[str]) -> list[Path]:
    """List what is in a folder, sorted, without hidden files."""
    try:
        return sorted(path for path in Path(folder).iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise FileError(f"cannot read the folder {folder}: {first_line(error)}.") from error


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


def _scratch_prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST_NAMED:
        name = f"{name[:40]}{target.suffix[-8:]}"
    return f".{name}."


def _is_write_error(error: Exception) -> bool:
    # safetensors and torch.save word a full disk in errors of their own.
    of_torch = "PytorchStreamWriter", "inline_container.cc", "iostream error"
    return (
        isinstance(error, OSError)
        or type(error).__name__ == "SafetensorError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in of_torch))
    )
