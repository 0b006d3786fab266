"""The whole way from drawn pictures to a pipeline, with next to no training."""

import importlib.util
from functools import partialmethod
from pathlib import Path

import pytest
from helpers.assertions import refuses

from tmapdiff import MomentLocalizationPipeline
from tmapdiff.data import SyntheticVideos, open_feature_store
from tmapdiff.errors import FileError

SCRIPT = Path(__file__).parents[2] / "examples" / "train_synthetic_videos.py"


def test_it_writes_a_pipeline_that_answers(tmp_path, capsys, monkeypatch):
    pytest.importorskip("av")
    spec = importlib.util.spec_from_file_location("train_synthetic_videos", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    # As many videos as there are to test on by default would be drawn for nothing.
    monkeypatch.setattr(
        example.SyntheticVideos, "__init__", partialmethod(small, SyntheticVideos.__init__)
    )
    example.main(["--output", str(tmp_path), "--videos", "12", "--passes", "1", "--epochs", "1"])
    said = capsys.readouterr().out
    assert "best constant" in said
    pipe = MomentLocalizationPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.frame_encoder.preprocess.input_size == (3, 64, 64)
    assert pipe.frame_encoder.feature_dim == 20  # what `layout` tells
    assert "trained on made-up pictures" in pipe.frame_encoder.description
    path = tmp_path / "videos" / "test" / "shapes-test-0-0.mp4"
    (moment,) = pipe(path, "the red circle grows", top_n=1).moments[0]
    assert 0 <= moment.start < moment.end <= 40.1
    # What it was trained on is what the pipeline makes of the file, but for compression.
    stored = open_feature_store(tmp_path / "features.h5")[path.stem]
    encoded = pipe.encode_video(path).features
    assert stored.shape == encoded.shape
    assert float((stored - encoded).abs().mean()) < 0.1 * float(stored.std())
    lines = SCRIPT.read_text().splitlines()
    assert len(lines) < 140
    # Again, the run before is neither lost nor touched.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    with refuses(FileError, f"--output: expected no earlier run in {tmp_path}, got checkpoints, "):
        example.main(["--output", str(tmp_path), "--videos", "12", "--passes", "1"])
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == before


def small(self, make, num_videos=3, **options):
    make(self, num_videos, **options)
