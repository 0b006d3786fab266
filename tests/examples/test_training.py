"""The example scripts: each loads or makes data, trains, evaluates and saves a pipeline."""

import importlib.util
import json
import re
from functools import partialmethod
from pathlib import Path

import h5py
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from helpers.assertions import refuses
from helpers.datasets import write_charades

from tmapdiff import MomentLocalizationPipeline
from tmapdiff.cli import main as tmapdiff
from tmapdiff.data import SyntheticVideos, open_feature_store
from tmapdiff.errors import FileError

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["--preset", "nano", "--epochs", "1"]


@pytest.fixture
def example(request):
    """Import the script `train_<suffix of the test's name>`."""
    AcceleratorState._reset_state(reset_partial_state=True)
    name = request.function.__name__.removeprefix("test_")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"train_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_didemo(folder: Path) -> Path:
    """DiDeMo with average_fc7.h5; every other video ends after five of its six segments."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    with h5py.File(folder / "average_fc7.h5", "w") as file:
        for split in ("train", "test"):
            records = []
            for number in range(4):
                segments = 6 - number % 2
                features = random.standard_normal((6, 10))
                features[segments:] = 0
                video = f"{number}@N01_{split}.mov"
                file[video] = features
                times = [[1, 1], [1, 1], [0, 1], [segments - 1, segments - 1]]
                about = {"annotation_id": number, "video": video, "description": "a dog runs."}
                records.append({**about, "times": times, "num_segments": segments})
            (folder / f"{split}_data.json").write_text(json.dumps(records))
    return folder


def test_they_are_short():
    limits = {"train_charades": 80, "train_didemo": 60, "train_synthetic_videos": 130}
    for path in EXAMPLES.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= limits.get(path.stem, 80), path
        assert len(re.findall(r'\("--', text)) <= 6, path


@pytest.mark.train
def test_charades(example, tmp_path, capsys):
    root, output = str(write_charades(tmp_path / "charades")), tmp_path / "run"
    example.main([*QUICK, "--root", root, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "test: 2 queries of 1 videos" in printed
    assert "SIMULATED" in printed
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 2
    assert (output / "maps.png").read_bytes().startswith(b"\x89PNG")
    # The pipeline gives the script's results, and the files are those of the command.
    command = ["evaluate", str(output / "pipeline"), "--root", root, "--features", "timeline"]
    assert tmapdiff([*command, "--device", "cpu"]) == 0
    again = json.loads((output / "evaluation" / "metrics.json").read_text())
    for name, value in re.findall(r"^(\S+) +(\S+), of the best constant", printed, re.MULTILINE):
        assert f"{again[name]:.2f}" == value
    written = (output / "predictions.jsonl", output / "evaluation" / "predictions.jsonl")
    assert written[0].read_text() == written[1].read_text()
    with refuses(FileError, "run"):
        example.main([*QUICK, "--root", root, "--output", str(output)])


@pytest.mark.train
def test_didemo(example, tmp_path, capsys):
    root = write_didemo(tmp_path / "didemo")
    features = ["--root", str(root), "--features", str(root / "average_fc7.h5")]
    example.main([*QUICK, *features, "--output", str(tmp_path / "run")])
    rows = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    windows = [json.loads(row)["pred_relevant_windows"] for row in rows]
    # Videos of five segments end at 25 seconds.
    assert max(end for moments in windows[::2] for _, end, _ in moments) <= 30
    assert max(end for moments in windows[1::2] for _, end, _ in moments) <= 25
    printed = capsys.readouterr().out
    assert re.search(r"^best constant +Rank@1 \d", printed, re.MULTILINE)
    assert re.search(r"^EMA weights, steps 2 .* Rank@1 \d", printed, re.MULTILINE)
    pipeline = MomentLocalizationPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert int(pipeline.localizer.grid.packed_mask().sum()) == 21


@pytest.mark.train
def test_synthetic_videos(example, tmp_path, capsys, monkeypatch):
    pytest.importorskip("av")
    # The default number of test videos is not needed.
    monkeypatch.setattr(
        example.SyntheticVideos, "__init__", partialmethod(_few, SyntheticVideos.__init__)
    )
    example.main(["--output", str(tmp_path), "--videos", "12", "--passes", "1", "--epochs", "1"])
    assert "best constant" in capsys.readouterr().out
    pipe = MomentLocalizationPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.frame_encoder.preprocess.input_size == (3, 64, 64)
    assert pipe.frame_encoder.feature_dim == 20  # the size of `layout`
    assert "trained on made-up frames" in pipe.frame_encoder.description
    path = tmp_path / "videos" / "test" / "shapes-test-0-0.mp4"
    (moment,) = pipe(path, "the red circle grows", top_n=1).moments[0]
    assert 0 <= moment.start < moment.end <= 40.1
    # The pipeline's features of the file are those of training, up to compression.
    stored = open_feature_store(tmp_path / "features.h5")[path.stem]
    encoded = pipe.encode_video(path).features
    assert stored.shape == encoded.shape
    assert float((stored - encoded).abs().mean()) < 0.1 * float(stored.std())
    # A second run neither loses nor changes the first.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    with refuses(FileError, f"--output: expected no earlier run in {tmp_path}, got checkpoints, "):
        example.main(["--output", str(tmp_path), "--videos", "12", "--passes", "1"])
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == before


def _few(self, make, num_videos=3, **options):
    make(self, num_videos, **options)
