"""What is refused before anything is served; serving itself is tested in a browser."""

import os
import re
import signal
import socket
from types import SimpleNamespace

import pytest
from helpers.assertions import refuses

from tmapdiff.demo import DemoLimits, launch_demo
from tmapdiff.errors import ArgumentError, ConfigError, FileError


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    pytest.importorskip("gradio")
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")


def test_a_port_in_use(pipeline):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = f"the demo: cannot listen on port {port} of 127.0.0.1: Address already in use."
        with pytest.raises(FileError, match=re.escape(text)):
            launch_demo(pipeline, port=port)
    with pytest.raises(FileError, match=r"cannot listen on port \d+ of 127\.0\.0\.1: "):
        launch_demo(pipeline, port=70_000)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_addresses_of_ipv6_and_the_handler_of_sigterm(pipeline, monkeypatch):
    launched = []
    page = SimpleNamespace(launch=lambda **given: launched.append(given))
    monkeypatch.setattr("tmapdiff.demo.page.build_page", lambda *_: page)
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for host in ("::1", "[::1]"):
            with pytest.raises(TypeError, match="NoneType"):  # from what is launched here
                launch_demo(pipeline, host=host)
            assert launched.pop()["server_name"] == "[::1]"
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_folders_without_videos(pipeline, tmp_path):
    with pytest.raises(FileError, match=r"expected a folder, got .*none, which does not exist"):
        launch_demo(pipeline, tmp_path / "none")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileError, match=r"expected videos in .*, got none"):
        launch_demo(pipeline, tmp_path)
    assert not os.path.exists(os.environ["GRADIO_TEMP_DIR"])
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_pipelines_of_features_only():
    with pytest.raises(ConfigError, match="expected a pipeline with a frame encoder, got none"):
        launch_demo(SimpleNamespace(frame_encoder=None, takes_text_tracks=False))


def test_limits_are_checked():
    with refuses(ArgumentError, "expected max_seconds in (0, inf), got 0"):
        DemoLimits(max_seconds=0)
    with refuses(ArgumentError, "expected max_steps to be an integer >= 1, got 0"):
        DemoLimits(max_steps=0)
