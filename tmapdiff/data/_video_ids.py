"""Ids of videos: which there may be, and the names that files and HDF5 datasets of them have."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard
from urllib.parse import quote, unquote

from tmapdiff._core.checks import message, shown
from tmapdiff._core.files import is_hidden
from tmapdiff.errors import AnnotationError

_LEAVES = re.compile(r"[/\\\0]")
# Of names that are no UTF-8, which HDF5 cannot hold.
_SURROGATES = "\ud800-\udfff"
# What Windows cannot have in a name, or takes for a drive.
_UNFIT = rf'<>:"|?*\x00-\x1f\x7f{_SURROGATES}'
_DEVICE = re.compile(
    r"(con|prn|aux|nul|com[0-9\xb9\xb2\xb3]|lpt[0-9\xb9\xb2\xb3]|conin\$|conout\$)\s*(\.|$)",
    re.IGNORECASE,
)
_LONGEST_NAME = 255  # bytes that file systems allow a name
_ESCAPED, _SHORTENED = "%=", "%~"  # how names begin that are not the id itself


def check_video_id(who: str, video_id: object) -> str:
    """Return `video_id`, or raise AnnotationError when it could name a file outside a folder.

    On any system: annotations made on one are read on another.
    """
    if not isinstance(video_id, str):
        raise AnnotationError(message(who, "a video id of text", shown(video_id)))
    if not is_video_id(video_id):
        expected = "a video id without '/', '\\' and NUL, that is not empty, '.' or '..'"
        raise AnnotationError(message(who, expected, shown(video_id)))
    return video_id


def is_video_id(video_id: object) -> TypeGuard[str]:
    """Tell whether something can be the id of a video."""
    if not isinstance(video_id, str) or video_id in ("", ".", ".."):
        return False
    return _LEAVES.search(video_id) is None


def file_name(video_id: str, suffix: str) -> str:
    """Name a file of a video, so that any file system can hold it.

    It is the id with the suffix. Where some systems do not allow that, `%=` and the id with escapes
    as in URLs; where that is too long, `%~`, a digest of the id, and its beginning.
    """
    no_name = is_hidden(video_id) or _DEVICE.match(video_id)
    name = f"{_escaped(video_id, _UNFIT, always=bool(no_name))}{suffix}"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(video_id.encode(errors="surrogatepass")).hexdigest()[:32]
    beginning = re.sub(r"[^\w.-]", "_", video_id[:20])
    return f"{_SHORTENED}{digest}-{beginning}{suffix}"


def is_shortened(name: str) -> bool:
    """Tell whether the name of a file does not hold the id of its video."""
    return name.startswith(_SHORTENED)


def video_id_of(name: str, suffix: str) -> str:
    """Return the id of the video that a file is of: the inverse of `file_name`.

    Of a shortened name, it returns the name: the id has to be looked up elsewhere.
    """
    return _unescaped(name.removesuffix(suffix), lambda video_id: file_name(video_id, ""))


def find_file(folder: Path, video_id: str, suffix: str) -> str | None:
    """Return the name of the file of a video in a folder, if there is one.

    Other programs name it by the id alone, where the system allows that.
    """
    names = [file_name(video_id, suffix)]
    if os.name != "nt" and not is_hidden(video_id):
        names.insert(0, f"{video_id}{suffix}")
    return next((name for name in names if os.path.isfile(folder / name)), None)


def hdf5_key(video_id: str) -> str:
    """Name the dataset of a video: its id, in which what is not UTF-8 is escaped."""
    return _escaped(video_id, _SURROGATES)


def video_id_of_key(key: str) -> str:
    """Return the id of the video that a dataset is of: the inverse of `hdf5_key`."""
    return _unescaped(key, hdf5_key)


def _escaped(video_id: str, unfit: str, *, always: bool = False) -> str:
    """Escape some characters; an id that looks escaped is, too, or it would be taken for such."""
    fits = re.search(f"[{unfit}]", video_id) is None
    if fits and not always and not video_id.startswith((_ESCAPED, _SHORTENED)):
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
    # Other programs may have names that begin so.
    return video_id if escape(video_id) == name else name
