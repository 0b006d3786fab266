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

from tmapdiff._core.checks import foreign_errors, message, require
from tmapdiff.demo.limits import DemoLimits
from tmapdiff.demo.security import SameHostOnly
from tmapdiff.errors import ConfigError, FileError, UnknownWordsWarning
from tmapdiff.pipelines import MomentLocalizationPipeline, list_sources


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

    There is no telemetry, and without `share` the page loads nothing from other hosts. Uploads are
    in a temporary folder; they are deleted after a day, and when the server ends.

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
    where = host if port is None else f"port {port} of {host}"
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failed = f"the demo: cannot listen on {where}"
    with foreign_errors(FileError, failed), socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind((host, port or 0))
    with (
        _interrupted_by_sigterm(),
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

        listed = {}
        if video_dir is not None:
            if not os.path.isdir(video_dir):
                got = f"{video_dir}, which does not exist"
                raise FileError(message("the demo", "a folder", got))
            found = list_sources([video_dir], text_tracks=pipeline.takes_text_tracks)
            listed = {path.name: path.absolute() for path in found}
        page = build_page(pipeline, limits, listed, examples)
        _, address, public = page.launch(
            server_name=f"[{host}]" if ":" in host else host,  # it becomes part of a URL
            server_port=port,
            share=share,
            allowed_paths=[str(path) for path in listed.values()],
            max_file_size=int(limits.max_megabytes * 1_000_000),
            show_error=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(SameHostOnly)], "docs_url": None},
            prevent_thread_lock=True,
            quiet=True,
            **page_style(),
        )
        try:
            if on_start is not None:
                on_start(address, public)
            threading.Event().wait()  # until an interrupt
        finally:
            page.close(verbose=False)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt meanwhile, so that the temporary folder is deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
