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
    """Serve the page until Ctrl+C or SIGTERM, which both raise KeyboardInterrupt.

    There is no telemetry, and without `share` no other host is contacted. Uploads are in a
    temporary folder. They are deleted when the visitor replaces them or closes the page, after a
    day without a query, after an hour if they are never used, and when the server ends.

    Args:
        pipeline: Pipeline with a frame encoder, or for text tracks (`from_text_encoder`).
        video_dir: Folder of videos or text tracks to offer.
        examples: Example sentences. Defaults to those of synthetic videos, if the model knows their
            words.
        host: Address to listen on; 0.0.0.0 allows other machines.
        port: Port to listen on. Defaults to the first free one from 7860.
        share: Get a public URL from Gradio's servers.
        limits: Limits of uploads and queries. Defaults to `DemoLimits()`.
        on_start: Called with the local and the public URL when the page is served.

    Raises:
        FileError: If the folder `video_dir` is missing or has no videos, or the port is in use.
        ConfigError: If the pipeline takes neither videos nor text tracks.
        MissingDependencyError: If gradio is not installed.
    """
    limits = limits or DemoLimits()
    if pipeline.frame_encoder is None and not pipeline.takes_text_tracks:
        hint = "This pipeline takes features, but the demo needs videos or text tracks."
        raise ConfigError(message("the demo", "a pipeline with a frame encoder", "none", hint))
    if port is not None:
        _check_port(host, port)
    with (
        _terminated_as_interrupted(),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory(prefix="tmapdiff-demo-") as folder,
    ):
        # The page shows unknown words, and queries should not be logged.
        warnings.simplefilter("ignore", UnknownWordsWarning)
        # Set before Gradio is imported, which reads them.
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
            ended = threading.Event()  # never set: only an interrupt ends the loop
            while not ended.wait(_BETWEEN_SWEEPS):
                videos.sweep()
        finally:
            page.close(verbose=False)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too, so that temporary files are deleted."""

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
