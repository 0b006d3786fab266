"""What is refused before anything is served; serving itself is tested in a browser."""

import os
import socket
from types import SimpleNamespace

import pytest

from tmapdiff.demo import launch_demo
from tmapdiff.errors import ConfigError, FileError


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    pytest.importorskip("gradio")
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")


def test_a_port_in_use(pipeline):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = f"the demo: expected port {port} of 127.0.0.1 to be free, got Address already in use"
        with pytest.raises(FileError, match=text):
            launch_demo(pipeline, port=port)
    with pytest.raises(FileError, match=r"expected port 70000 of .* to be free, got "):
        launch_demo(pipeline, port=70_000)


def test_folders_without_videos(pipeline, tmp_path):
    with pytest.raises(
        FileError, match=r"cannot read the folder .*none: No such file or directory"
    ):
        launch_demo(pipeline, tmp_path / "none")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileError, match="expected a folder with videos, got 1 other files"):
        launch_demo(pipeline, tmp_path)
    assert not os.path.exists(os.environ["GRADIO_TEMP_DIR"])
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_pipelines_of_features_only():
    with pytest.raises(ConfigError, match="expected a pipeline with a frame encoder, got none"):
        launch_demo(SimpleNamespace(frame_encoder=None))
