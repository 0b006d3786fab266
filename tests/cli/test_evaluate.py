import json

import numpy as np
import pytest
from helpers.text_encoders import tiny_text_encoder

from tmapdiff import PRESETS, MomentLocalizationPipeline

KEYS = ["Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU"]


def test_a_pipeline_evaluates_to_what_training_said(run, finished):
    found = run("evaluate", finished / "pipeline", "--limit", 16, "--device", "cpu", "--json")
    assert found.code == 0
    before = json.loads((finished / "metrics.json").read_text())
    assert {key: found.document[key] for key in KEYS} == {key: before[key] for key in KEYS}
    folder = finished / "evaluation"
    for name in ("predictions.jsonl", "metrics.json"):
        assert (folder / name).exists()
    predictions = [(one / "predictions.jsonl").read_text() for one in (finished, folder)]
    assert predictions[0] == predictions[1]


def test_each_number_of_steps_is_a_row(run, corpus, tmp_path):
    data = ["--test", corpus.test, "--features", corpus.features, "--output", tmp_path]
    found = run("evaluate", corpus.pipeline, *data, "--steps", 1, "--steps", 3, "--samples", 2)
    assert found.code == 0
    rows = [line.split()[:2] for line in found.out.splitlines()]
    assert [row for row in rows if row[:1] == ["steps"]] == [["steps", "1"], ["steps", "3"]]
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert (summary["num_inference_steps"], list(summary["rows"])) == (1, ["steps 1", "steps 3"])


def test_a_pipeline_with_a_text_encoder(run, corpus, tmp_path):
    text = tiny_text_encoder(["the", "number", "is", "shown", "0", "1", "2", "3"])
    channels = MomentLocalizationPipeline.from_pretrained(corpus.pipeline).frame_encoder.feature_dim
    localizer = PRESETS["nano"].build(
        vocabulary_size=None,
        clip_channels=channels,
        encoder={"text_channels": text.token_channels},
    )
    MomentLocalizationPipeline(localizer, text_encoder=text).save_pretrained(tmp_path / "pipeline")
    data = ["--test", corpus.test, "--features", corpus.features, "--device", "cpu"]
    found = run("evaluate", tmp_path / "pipeline", *data, "--json")
    assert found.code == 0, found.err
    lines = (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()
    asked = [json.loads(line)["query"] for line in lines]
    assert asked == [f"the number {number} is shown" for number in range(4)]
    assert 0 <= found.document["mIoU"] <= 100


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--features", "x.h5"], "'--features': it does nothing without --test or --root."),
        (["--root", "x"], "'--features': name the features of the videos."),
    ],
)
def test_wrong_usage_is_code_2(run, options, text):
    found = run("evaluate", "x", *options)
    assert found.code == 2
    assert text in found.err


def test_errors_are_one_line(run, corpus, finished, tmp_path):
    np.save(tmp_path / "three.npy", np.ones((16, 5), np.float32))
    data = ["--test", corpus.test, "--features"]
    for place, options, text in (
        (tmp_path / "none", [], "cannot load"),
        (corpus.pipeline, [*data, tmp_path], "channels, as in training, got 5 from"),
        (corpus.pipeline, ["--root", corpus.test.parent, "--features", "timeline"], "Charades_v1"),
        (finished / "pipeline", ["--dataset", "didemo"], "a pipeline of DiDeMo's 21 moments"),
        (finished / "pipeline", ["--steps", "0"], "num_inference_steps"),
    ):
        found = run("evaluate", place, *options)
        assert (found.code, found.err.count("\n")) == (1, 1), found.err
        assert text in found.err
