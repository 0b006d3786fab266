"""Actions of the page's controls."""

import html
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from tmapdiff.demo.answers import find_answer
from tmapdiff.demo.sessions import SessionVideos
from tmapdiff.errors import TmapdiffError
from tmapdiff.pipelines import MomentLocalizationPipeline

WELCOME = "Upload a {} or pick one, and type a sentence."
IDLE = "Click a cell of the map or a bar, or press Enter on it, to play its moment."
IDLE_TRACK = "Click a cell of the map or a bar, or press Enter on it, to show its lines."
_LOG = logging.getLogger(__name__)


@dataclass
class Visits:
    """Actions of the page's controls.

    Methods return new values of controls. Errors become messages to the visitor.
    """

    pipeline: MomentLocalizationPipeline
    videos: SessionVideos
    listed: dict[str, Path]  # files to pick from, by name

    def upload(self, upload: dict[str, Any] | None, request: gr.Request) -> tuple[Any, ...]:
        """Take a file that the visitor uploaded, {"path": ...} in Gradio."""
        path = Path(str((upload or {}).get("path", ""))).resolve()
        # The browser sends the path, which could be any other file of the server.
        if not path.is_file() or self.videos.folder.resolve() not in path.parents:
            return _refused("The upload did not arrive. Please try again.")
        return self._take(_session(request), path, move=True)

    def pick(self, name: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Take a file from the folder."""
        if not name:
            return (gr.skip(),) * 4
        if name not in self.listed:
            return _refused("There is no such video to pick.")
        return self._take(_session(request), self.listed[name], move=False, name=name)

    def _take(self, session: str, path: Path, *, move: bool, name: str = "") -> tuple[Any, ...]:
        try:
            video = self.videos.take(session, path, move=move)
        except Exception as error:
            return _refused(_word(error, path, path.name))
        if self.videos.text_tracks:
            cues = [[cue.start, cue.end, cue.text] for cue in video.cues]
            return json.dumps(cues), name, line(f"{video.name} is ready. What is said in it?"), ""
        note = f"{video.name} is ready. What happens in it?"
        return str(video.shown), name, line(note), ""

    def end(self, request: gr.Request) -> None:
        """Forget a visitor who has closed the page."""
        self.videos.end(_session(request))

    def ask(
        self, query: str, steps: float, samples: float, as_set: bool, request: gr.Request
    ) -> Iterator[tuple[str, Any]]:
        """Answer a query, with status lines meanwhile."""
        video = self.videos.get(_session(request))
        if video is None:
            yield line("There is no file to search yet: upload or pick one.", wrong=True), ""
            return
        if not query.strip():
            yield line("Type a sentence first.", wrong=True), ""
            return
        yield line(f"Encoding {video.name} …", busy=True), gr.skip()
        limits = self.videos.limits
        try:
            self.pipeline.encode_queries([query])  # fails before decoding if no word is known
            unknown = self.pipeline.unknown_words(query)
            features = self.pipeline.encode_video(video.source)
            doing = "Denoising" if self.pipeline.localizer.is_generative else "Comparing"
            yield line(f"{doing} …", busy=True), gr.skip()
            found = find_answer(
                self.pipeline,
                features,
                query.strip(),
                steps=min(max(1, int(steps)), limits.max_steps),
                samples=min(max(1, int(samples)), limits.max_samples),
                seed=0,
                answer="set" if as_set else "ranked",
            )
        except Exception as error:
            yield line(_word(error, video.source, video.name), wrong=True), ""
            return
        notes = [IDLE_TRACK if video.cues else IDLE]
        if unknown:
            notes.append(f"The model does not know these words: {', '.join(unknown)}.")
        if features.damage:
            notes.append(f"Part of the video is damaged: {features.damage}.")
        yield line(" ".join(notes)), found


def _word(error: Exception, path: Path, name: str) -> str:
    """Word an error for a visitor, without the folders of the server."""
    if isinstance(error, TmapdiffError):
        return str(error).replace(str(path), name)
    _LOG.error("the demo failed", exc_info=error)
    return "Something went wrong on the server; see its log."


def _refused(text: str) -> tuple[Any, ...]:
    return None, "", line(text, wrong=True), ""


def line(text: str, *, wrong: bool = False, busy: bool = False) -> str:
    """Format a status line."""
    kind = "wrong" if wrong else "busy" if busy else "idle"
    role = "alert" if wrong else "status"
    return f'<p class="{kind}" role="{role}">{html.escape(text)}</p>'


def _session(request: gr.Request) -> str:
    return str(request.session_hash)
