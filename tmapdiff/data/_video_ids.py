"""Video ids: which are allowed, and the names of their files and HDF5 datasets."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeGuard
from urllib.parse import quote, unquote

from tmapdiff._core.checks import message, shown
from tmapdiff._core.files import is_hidden
from tmapdiff.errors import AnnotationError, ArgumentError

_LEAVES = re.compile(r"[/\\\0]")
# In names that are not UTF-8, which HDF5 cannot store.
_SURROGATES = "\ud800-\udfff"
# Characters that Windows does not allow in names, or takes for a drive.
_UNFIT = rf'<>:"|?*\x00-\x1f\x7f{_SURROGATES}'
_DEVICE = re.compile(
    r"(con|prn|aux|nul|com[0-9\xb9\xb2\xb3]|lpt[0-9\xb9\xb2\xb3]|conin\$|conout\$)\s*(\.|$)",
    re.IGNORECASE,
)
_LONGEST_NAME = 255  # bytes of a name that file systems allow
_ESCAPED = "%="  # prefix of escaped names


def check_video_id(who: str, video_id: object) -> str:
    """Return `video_id`, or raise AnnotationError if it could leave a folder on any system."""
    if not isinstance(video_id, str):
        raise AnnotationError(message(who, "a video id as text", shown(video_id)))
    if not is_video_id(video_id):
        expected = "a video id without '/', '\\' and NUL, and not empty, '.' or '..'"
        raise AnnotationError(message(who, expected, shown(video_id)))
    return video_id


def is_video_id(video_id: object) -> TypeGuard[str]:
    """Return whether something can be a video id."""
    if not isinstance(video_id, str) or video_id in ("", ".", ".."):
        return False
    return _LEAVES.search(video_id) is None


def by_id(who: str, files: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names without suffix; ArgumentError if two have the same."""
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            got = f"{found[path.stem]} and {path}"
            raise ArgumentError(
                message(who, "one file per id", got, "Rename one, or pass them by id.")
            )
        found[path.stem] = path
    return found


def file_name(video_id: str, suffix: str) -> str:
    """Return the file name of a video, or raise AnnotationError if it is too long."""
    name = _file_name(video_id, suffix)
    if len(name.encode()) > _LONGEST_NAME:
        expected = f"a video id whose file name has at most {_LONGEST_NAME} bytes"
        raise AnnotationError(message("features", expected, shown(video_id)))
    return name


def _file_name(video_id: str, suffix: str) -> str:
    """Return the id with the suffix or, if some systems forbid that, `%=` and the escaped id."""
    no_name = is_hidden(video_id) or _DEVICE.match(video_id)
    return f"{_escaped(video_id, _UNFIT, always=bool(no_name))}{suffix}"


def video_id_of(name: str, suffix: str) -> str:
    """Return the video id of a file name, the inverse of `file_name`."""
    return _unescaped(name.removesuffix(suffix), lambda video_id: _file_name(video_id, ""))


def find_file(folder: Path, video_id: str, suffix: str) -> str | None:
    """Return the name of a video's file in a folder, or None."""
    names = [_file_name(video_id, suffix)]
    # Other programs use the id unescaped, where the system allows it.
    if os.name != "nt" and not is_hidden(video_id):
        names.insert(0, f"{video_id}{suffix}")
    return next((name for name in names if os.path.isfile(folder / name)), None)


def hdf5_key(video_id: str) -> str:
    """Return the dataset name of a video: its id, with escapes for what is not UTF-8."""
    return _escaped(video_id, _SURROGATES)


def video_id_of_key(key: str) -> str:
    """Return the video id of a dataset name, the inverse of `hdf5_key`."""
    return _unescaped(key, hdf5_key)


def _escaped(video_id: str, unfit: str, *, always: bool = False) -> str:
    """Escape some characters, and ids that look escaped already."""
    fits = re.search(f"[{unfit}]", video_id) is None
    if fits and not always and not video_id.startswith(_ESCAPED):
        return video_id

    def escape(found: re.Match[str]) -> str:
        return quote(found[0], safe="", errors="surrogatepass")

    return _ESCAPED + re.sub(f"[{unfit}%]", escape, video_id)


def _unescaped(name: str, escape: Callable[[str], str]) -> str:
    if not name.startswith(_ESCAPED):
        return name
    try:
        video_id = unquote(name.removeprefix(_ESCAPED), errors="surrogatepass")
    except UnicodeDecodeError:
        return name
    # Names of other programs may start like this without being escaped.
    return video_id if escape(video_id) == name else name
