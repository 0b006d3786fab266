"""Videos of the visitors, one per visitor."""

import os
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from tmapdiff._core.checks import message
from tmapdiff.data.text_tracks import Cue
from tmapdiff.demo.limits import DemoLimits
from tmapdiff.demo.playback import is_playable, write_playable
from tmapdiff.errors import VideoError

_WAITING = 3600  # seconds until an unused upload is deleted
_IDLE = 86_400  # seconds until the video of an inactive visitor is deleted
_LEAST = 100_000  # bytes that each file counts at least, as empty files take space too


@dataclass(frozen=True)
class SessionVideo:
    """A visitor's video.

    Attributes:
        name: Name of the file.
        source: The file to search. For files that are offered to all, the original, so that its
            features are computed once.
        shown: The file for the player.
        folder: Folder that is deleted with it.
        size: Size in bytes on the disk.
        cues: Cues of a text track.
    """

    name: str
    source: Path
    shown: Path
    folder: Path
    size: int
    cues: tuple[Cue, ...] = ()


class SessionVideos:
    """Stores the videos (or text tracks) of all visitors, each in a folder with a secret name."""

    def __init__(
        self, folder: str | os.PathLike[str], limits: DemoLimits, *, text_tracks: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.limits = limits
        self.text_tracks = text_tracks
        self._videos: dict[str, SessionVideo] = {}
        self._used: dict[str, float] = {}  # time of the last use, by visitor
        self._ended: dict[str, float] = {}  # time of leaving, by visitor
        self._waiting: dict[Path, tuple[int, float]] = {}  # size and time of uploads, by folder
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._videos)

    def get(self, session: str) -> SessionVideo | None:
        """Return a visitor's video."""
        with self._lock:
            if session in self._videos:
                self._used[session] = monotonic()
            return self._videos.get(session)

    def expect(self, size: int) -> Path:
        """Make a folder for an upload of `size` bytes, or raise VideoError if there is no space."""
        self.sweep()
        folder = self._new_folder()
        with self._lock:
            self._check_room(size)
            self._waiting[folder] = (size, monotonic())
        folder.mkdir(parents=True)
        return folder

    def forget(self, folder: Path) -> None:
        """Delete the folder of an upload, if it is one."""
        with self._lock:
            waiting = self._waiting.pop(folder, None)
        if waiting is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Delete unused uploads and videos of inactive visitors."""
        now = monotonic()
        with self._lock:
            waited = [one for one, (_, since) in self._waiting.items() if now - since > _WAITING]
            idle = [one for one, used in self._used.items() if now - used > _IDLE]
            self._ended = {one: left for one, left in self._ended.items() if now - left <= _IDLE}
        for folder in waited:
            self.forget(folder)
        for session in idle:
            self.drop(session)

    def take(self, session: str, path: str | os.PathLike[str], *, move: bool) -> SessionVideo:
        """Replace a visitor's video by a file, which is moved, or otherwise linked or copied.

        VideoError is raised, and a file to be moved is deleted, if it is not a video, exceeds a
        limit or the space, or the visitor has left.
        """
        self.drop(session)
        given = Path(path)
        folder = self._new_folder()
        folder.mkdir(parents=True)
        try:
            cues: tuple[Cue, ...] = ()
            if self.text_tracks:
                cues = self.limits.check_track(given)
            else:
                self.limits.check(given)
            source, shown = given, folder / given.name
            if move:
                source = Path(shutil.move(given, shown))
            if not self.text_tracks and not is_playable(source):
                self._check_room(0 if move else source.stat().st_size)
                shown = folder / f"{source.stem}-playable.mp4"
                write_playable(source, shown)
            elif not move and not _linked(source, shown):
                self._check_room(source.stat().st_size)
                shutil.copyfile(source, shown)
            files = [one.stat() for one in folder.iterdir()]
            size = sum(one.st_size for one in files if one.st_nlink == 1)
            video = SessionVideo(given.name, source, shown, folder, size, cues)
            with self._lock:
                if session in self._ended:
                    raise VideoError(message(given.name, "an open page", "a closed one"))
                self._videos[session] = video
                self._used[session] = monotonic()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if move:
                given.unlink(missing_ok=True)
            raise
        finally:
            if move:
                self.forget(given.parent)
        return video

    def drop(self, session: str) -> None:
        """Delete a visitor's video, if there is one."""
        with self._lock:
            video = self._videos.pop(session, None)
            self._used.pop(session, None)
        if video is not None:
            shutil.rmtree(video.folder, ignore_errors=True)

    def end(self, session: str) -> None:
        """Delete the video of a visitor who has left, and refuse one still being uploaded."""
        with self._lock:
            self._ended[session] = monotonic()
        self.drop(session)

    def _new_folder(self) -> Path:
        return self.folder / secrets.token_urlsafe(24)

    def _check_room(self, size: int) -> None:
        with self._lock:
            taken = [one for one, _ in self._waiting.values()]
            taken += [one.size for one in self._videos.values()]
        left = self.limits.max_total_bytes - sum(max(one, _LEAST) for one in taken)
        if max(size, _LEAST) > left:
            expected = f"{size / 1_000_000:.1f} MB of space beside the files of other visitors"
            hint = "Please try again later."
            got = f"{max(left, 0) / 1_000_000:.1f} MB"
            raise VideoError(message("the demo", expected, got, hint))


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        return False
    return True
