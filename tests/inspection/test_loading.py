"""Inspection imports only the packages it needs, so that small files take little time."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.datasets import query_line, write_charades, write_lines, write_store
from helpers.videos import write_video

pytestmark = pytest.mark.process

MODELS = {"diffusers", "transformers", "timm", "accelerate", "matplotlib"}
CODE = """
import json, sys
from tmapdiff.inspection import inspect
kinds = [inspect(*places).kind for places in json.loads(sys.argv[1])]
print(json.dumps([kinds, list(sys.modules)]))
"""


def inspected(*groups):
    """Inspect in a new process; return the kinds, and the packages it imported."""
    command = [sys.executable, "-W", "error", "-c", CODE, json.dumps(groups, default=str)]
    kinds, modules = json.loads(subprocess.check_output(command, text=True))
    return kinds, {name.split(".")[0] for name in modules}


@pytest.fixture
def places(tmp_path):
    """Return a folder with an input of each kind."""
    record = {"duration": 50.5, "timestamps": [[0.5, 9.0]], "sentences": ["A man lifts."]}
    (tmp_path / "x.json").write_text(json.dumps({"v_a": record}))
    write_lines(tmp_path / "x.jsonl", [query_line(video="a")])
    write_charades(tmp_path / "charades")
    write_store(tmp_path / "features", "npy", {"a": np.ones((4, 3), np.float32)})
    write_video(tmp_path / "v.mp4", [0, 1])
    return tmp_path


def test_annotations_are_inspected_without_torch(places):
    lines, by_video, folder = (places / name for name in ("x.jsonl", "x.json", "charades"))
    kinds, modules = inspected([by_video], [lines], [folder], [lines, by_video])
    assert kinds == ["annotations"] * 4
    assert not ({"torch"} | MODELS) & modules


def test_features_and_videos_are_inspected_without_models(places):
    features, video, lines = (places / name for name in ("features", "v.mp4", "x.jsonl"))
    kinds, modules = inspected([features], [features, lines], [video])
    assert kinds == ["features", "features", "videos"]
    assert "torch" in modules
    assert not MODELS & modules
