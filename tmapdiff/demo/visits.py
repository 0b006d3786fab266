"""Actions of the page's controls."""

import html
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from tmapdiff._core.checks import message
from tmapdiff.data.text_tracks import load_text_track
from tmapdiff.demo.answers import find_answer
from tmapdiff.demo.limits import DemoLimits
from tmapdiff.errors import TmapdiffError, VideoError
from tmapdiff.pipelines import MomentLocalizationPipeline
from tmapdiff.video import probe_video
from tmapdiff.video.decoding import open_container, require_av

_LOG = logging.getLogger(__name__)


@dataclass
class Visits:
    """Actions of the page's controls.

    Methods return new values of controls. Errors become messages to the visitor.
    """

    pipeline: MomentLocalizationPipeline
    limits: DemoLimits
    listed: Mapping[str, Path]  # files to pick from, by name

    def upload(self, path: str) -> tuple[Any, ...]:
        """Take a file that the visitor uploaded."""
        return self._take(Path(path))

    def pick(self, name: str) -> tuple[Any, ...]:
        """Take a file from the folder."""
        return self._take(self.listed[name], name) if name else (gr.skip(),) * 5

    def _take(self, path: Path, picked: str = "") -> tuple[Any, ...]:
        """Return the values of player, picker, status and answer, and the file to search."""
        try:
            if self.pipeline.takes_text_tracks:
                cues = load_text_track(path)
                shown = json.dumps([[cue.start, cue.end, cue.text] for cue in cues])
                asked = "What is said in it?"
            else:
                self._check_length(path)
                shown, asked = str(path), "What happens in it?"
        except Exception as error:
            return None, "", line(_word(error, path), wrong=True), "", None
        return shown, picked, line(f"{path.name} is ready. {asked}"), "", str(path)

    def _check_length(self, path: Path) -> None:
        info, most = probe_video(path), self.limits.max_seconds
        if not info.has_video:
            raise VideoError(message(path.name, "a video", "a file without frames"))
        duration = info.duration or 0.0
        if duration <= most:
            duration = max(duration, _seconds_of_packets(path))
        if duration > most:
            expected, got = (f"{seconds:.0f} seconds" for seconds in (most, duration))
            hint = "Cut it to the part you need."
            raise VideoError(message(path.name, f"a video of at most {expected}", got, hint))

    def ask(
        self, query: str, steps: float, samples: float, as_set: bool, source: str | None
    ) -> Iterator[tuple[str, Any]]:
        """Answer a query, with status lines meanwhile."""
        if source is None:
            yield line("There is no file to search yet: upload or pick one.", wrong=True), ""
            return
        if not query.strip():
            yield line("Type a sentence first.", wrong=True), ""
            return
        path = Path(source)
        yield line(f"Encoding {path.name} …", busy=True), gr.skip()
        try:
            self.pipeline.encode_queries([query])  # fails before decoding if no word is known
            unknown = self.pipeline.unknown_words(query)
            features = self.pipeline.encode_video(path)
            doing = "Denoising" if self.pipeline.localizer.is_generative else "Comparing"
            yield line(f"{doing} …", busy=True), gr.skip()
            found = find_answer(
                self.pipeline,
                features,
                query.strip(),
                steps=min(max(1, int(steps)), self.limits.max_steps),
                samples=min(max(1, int(samples)), self.limits.max_samples),
                seed=0,
                answer="set" if as_set else "ranked",
            )
        except Exception as error:
            yield line(_word(error, path), wrong=True), ""
            return
        does = "show its lines" if self.pipeline.takes_text_tracks else "play its moment"
        notes = [f"Click a cell of the map or a bar, or press Enter on it, to {does}."]
        if unknown:
            notes.append(f"The model does not know these words: {', '.join(unknown)}.")
        if features.damage:
            notes.append(f"Part of the video is damaged: {features.damage}.")
        yield line(" ".join(notes)), found


def _seconds_of_packets(path: Path) -> float:
    """Return the seconds between first and last frame, as headers may lack or misstate them."""
    av, first, last = require_av(), math.inf, -math.inf
    # Of a damaged file, the part before the damage counts.
    with suppress(av.error.FFmpegError, OSError, ValueError), open_container(path) as file:
        for packet in file.demux(file.streams.best("video")):
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                first, last = min(first, time), max(last, time)
    return max(last - first, 0.0)


def _word(error: Exception, path: Path) -> str:
    """Word an error for a visitor, without the folders of the server."""
    if isinstance(error, TmapdiffError):
        return str(error).replace(str(path), path.name)
    _LOG.error("the demo failed", exc_info=error)
    return "Something went wrong on the server; see its log."


def line(text: str, *, wrong: bool = False, busy: bool = False) -> str:
    """Format a status line."""
    kind = "wrong" if wrong else "busy" if busy else "idle"
    role = "alert" if wrong else "status"
    return f'<p class="{kind}" role="{role}">{html.escape(text)}</p>'
