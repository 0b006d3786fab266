"""The server of the page."""

import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tmapdiff._core.checks import message, require
from tmapdiff.demo.limits import DemoLimits
from tmapdiff.demo.security import SameHostOnly
from tmapdiff.demo.sessions import SessionVideos
from tmapdiff.errors import ConfigError, FileError, UnknownWordsWarning
from tmapdiff.pipelines import MomentLocalizationPipeline

_BETWEEN_SWEEPS = 600.0  # seconds


def launch_demo(
    pipeline: MomentLocalizationPipeline,
    video_dir: str | os.PathLike[str] | None = None,
    *,
    examples: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    limits: DemoLimits | None = None,
    on_start: Callable[[str, str | None], Any] | None = None,
) -> None:
    """Serve the page until it is interrupted, by Ctrl+C or SIGTERM: a KeyboardInterrupt.

    Nothing is reported to anyone, and without `share` no other host is asked for anything. Uploads
    lie in a temporary folder. A visitor's is deleted when another comes in its place, when the page
    is closed, after a day without a question, and when the server ends; one that nobody asks about,
    after an hour.

    Args:
        pipeline: What answers; it needs a frame encoder, or takes text tracks
            (`from_text_encoder`).
        video_dir: Folder of videos, or text tracks, that visitors may pick.
        examples: Sentences to click. Defaults to those of made-up videos, where the model knows
            their words.
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Where to listen. Defaults to the first free one from 7860.
        share: Whether to ask Gradio's servers for a public address.
        limits: What is refused. Defaults to `DemoLimits()`.
        on_start: Called when the page is served, with its address and the public one.

    Raises:
        FileError: If there is no folder `video_dir`, or no video in it, or the port is taken.
        ConfigError: If the pipeline takes neither videos nor text tracks.
        MissingDependencyError: If gradio is not installed.
    """
    limits = limits or DemoLimits()
    if pipeline.frame_encoder is None and not pipeline.takes_text_tracks:
        hint = "It works on features, and the demo on videos or text tracks."
        raise ConfigError(message("the demo", "a pipeline with a frame encoder", "none", hint))
    if port is not None:
        _check_port(host, port)
    with (
        _terminated_as_interrupted(),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory(prefix="tmapdiff-demo-") as folder,
    ):
        # Visitors see it on the page; what they ask is not to be in a log.
        warnings.simplefilter("ignore", UnknownWordsWarning)
        # Gradio reads these when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder
        require("gradio", extra="demo", purpose="the demo")
        from starlette.middleware import Middleware

        from tmapdiff.demo.page import build_page, page_style
        from tmapdiff.demo.uploads import UploadRoute

        videos = SessionVideos(folder, limits, text_tracks=pipeline.takes_text_tracks)
        page = build_page(pipeline, videos, video_dir, examples)
        middleware = [Middleware(SameHostOnly), Middleware(UploadRoute, videos=videos)]
        _, address, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            max_file_size=limits.max_bytes,
            show_error=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            app_kwargs={"middleware": middleware, "docs_url": None},
            prevent_thread_lock=True,
            quiet=True,
            **page_style(),
        )
        try:
            if on_start is not None:
                on_start(address, public)
            ended = threading.Event()  # by an interrupt alone
            while not ended.wait(_BETWEEN_SWEEPS):
                videos.sweep()
        finally:
            page.close(verbose=False)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM be a KeyboardInterrupt too: temporary files are deleted then."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_port(host: str, port: int) -> None:
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        expected = f"port {port} of {host} to be free"
        raise FileError(message("the demo", expected, reason)) from error
