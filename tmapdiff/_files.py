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
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block may create a file or a folder there. A file that exists at `path` is replaced after
    the new one is complete; a folder that exists gets the new files one by one and keeps its
    others. When the block fails, nothing is left behind.

    Raises:
        FileError: If the place cannot be written, for example for want of rights or disk space.
    """
    target = Path(path)
    scratch: Path | None = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            # Python's own words, "File exists", would mislead: the parent is a file.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        new = scratch / target.name
        yield new
        if new.is_dir() and target.is_dir():
            for file in (path for path in new.rglob("*") if path.is_file()):
                place = target / file.relative_to(new)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
        else:
            new.replace(target)
    except Exception as error:
        if isinstance(error, FileError) or not _is_write_error(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
        raise FileError(f"cannot write {target}: {reason}.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _is_write_error(error: Exception) -> bool:
    # safetensors and torch.save word a full disk in errors of their own.
    return (
        isinstance(error, OSError)
        or type(error).__name__ == "SafetensorError"
        or (isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error))
    )
