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


def test_listed_videos_are_in_natural_order(tmp_path):
    from tmapdiff.demo.page import _list_videos

    for name in ("film-10.mp4", "film-2.MP4", "film-0.mkv", "film-1.mp4", "film-1.gif", "b.txt"):
        (tmp_path / name).touch()
    (tmp_path / "talk.vtt").write_text("")
    assert list(_list_videos(tmp_path, tracks=True)) == ["talk.vtt"]
    expected = ["film-0.mkv", "film-1.mp4", "film-2.MP4", "film-10.mp4"]
    assert list(_list_videos(tmp_path)) == expected  # a .gif beside a video is its preview


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
        launch_demo(SimpleNamespace(frame_encoder=None, takes_text_tracks=False))
