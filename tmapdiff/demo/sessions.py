"""The one video that each visitor has at a time."""

import os
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from tmapdiff._checks import message
from tmapdiff.demo.limits import DemoLimits
from tmapdiff.demo.playback import is_playable, write_playable
from tmapdiff.errors import VideoError


@dataclass(frozen=True)
class SessionVideo:
    """A visitor's video.

    Attributes:
        name: As the visitor calls it.
        source: The file that is searched: of a file that was not moved, itself, so that its
            features are computed once for all visitors.
        shown: The file that the player plays.
        folder: What is deleted with it.
    """

    name: str
    source: Path
    shown: Path
    folder: Path


class SessionVideos:
    """Keeps the videos of all visitors in one folder, each in a folder that cannot be guessed.

    Args:
        folder: Where to keep them.
        limits: What is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], limits: DemoLimits) -> None:
        self.folder = Path(folder)
        self.limits = limits
        self._videos: dict[str, SessionVideo] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._videos)

    def get(self, session: str) -> SessionVideo | None:
        """Return a visitor's video."""
        return self._videos.get(session)

    def take(self, session: str, path: str | os.PathLike[str], *, move: bool) -> SessionVideo:
        """Make a file a visitor's video, in place of the one before.

        Args:
            session: The visitor.
            path: The file.
            move: Whether the file itself is taken, not a copy.

        Raises:
            FileError: If it cannot be read.
            VideoError: If it is no video, or beyond a limit, or the visitor has left meanwhile; it
                is deleted then, if it was to be moved.
        """
        self.drop(session)
        given = Path(path)
        folder = self.folder / secrets.token_urlsafe(24)
        folder.mkdir(parents=True)
        try:
            self.limits.check(given)
            source, shown = given, folder / given.name
            if move:
                source = Path(shutil.move(given, shown))
            if not is_playable(source):
                shown = folder / f"{source.stem}-playable.mp4"
                write_playable(source, shown)
            elif not move:
                _link_or_copy(source, shown)
            video = SessionVideo(given.name, source, shown, folder)
            with self._lock:
                if session in self._ended:
                    raise VideoError(message(given.name, "its visitor to wait", "a closed page"))
                self._videos[session] = video
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if move:
                given.unlink(missing_ok=True)
            raise
        return video

    def drop(self, session: str) -> None:
        """Delete a visitor's video, if there is one."""
        with self._lock:
            video = self._videos.pop(session, None)
        if video is not None:
            shutil.rmtree(video.folder, ignore_errors=True)

    def end(self, session: str) -> None:
        """Delete the video of a visitor who has left, also if it is still on its way."""
        with self._lock:
            self._ended.add(session)
        self.drop(session)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
