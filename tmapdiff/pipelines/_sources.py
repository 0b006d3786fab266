"""Videos given as files or folders."""

import os
from collections.abc import Sequence
from pathlib import Path

from tmapdiff._core.checks import message
from tmapdiff.data.text_tracks import find_tracks
from tmapdiff.errors import FileError
from tmapdiff.video.extraction import find_videos


def list_sources(
    places: Sequence[str | os.PathLike[str]], *, text_tracks: bool = False
) -> list[Path]:
    """List files, and the videos in folders, or the `text_tracks` in them instead.

    Subfolders of the `places` are not searched.

    Raises:
        FileError: If a folder cannot be read or contains none.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not os.path.isdir(place):  # unlike Path.is_dir, works for names that are too long
            found.append(place)
            continue
        inside = find_tracks(place) if text_tracks else find_videos(place)[0]
        if not inside:
            kind = "text tracks" if text_tracks else "videos"
            raise FileError(message("localize", f"{kind} in {place}", "none"))
        found += inside
    return found
