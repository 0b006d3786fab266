import json

import numpy as np
import pytest
from helpers.datasets import contents
from helpers.text_encoders import tiny_text_encoder

from tmapdiff import MomentLocalizationPipeline
from tmapdiff.recipes import LocalizationData, Recipe, evaluate_control
from tmapdiff.video import FrameEncoder

from .conftest import QUICK

KEYS = ["Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU"]


def test_a_run_writes_all_it_promises(finished):
    summary = json.loads((finished / "metrics.json").read_text())
    assert all(0 <= summary[key] <= 100 for key in KEYS)
    assert {"rows", "seed", "features", "versions", "git_commit", "seconds"} <= summary.keys()
    assert list(summary["rows"]) == [
        "best constant",
        "raw weights, steps 2",
        "EMA weights, steps 2",
    ]
    assert summary["rows"]["EMA weights, steps 2"] == {key: summary[key] for key in KEYS}
    assert "SIMULATED" in summary["features"]
    lines = (finished / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 16
    assert len(json.loads(lines[0])["pred_relevant_windows"]) == 5
    assert (finished / "maps.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "checkpoints").iterdir())
    pipeline = MomentLocalizationPipeline.from_pretrained(finished / "pipeline")
    assert (pipeline.frame_encoder, pipeline.config.fps) == (None, 4.0)


@pytest.mark.train
def test_two_runs_with_one_seed_are_equal_and_steps_are_rows(passes, finished, tmp_path):
    options = ["--limit", 16, "--output", tmp_path, "--steps", 2, "--steps", 1]
    passes("train", *QUICK, *options)
    first, second = (
        json.loads((folder / "metrics.json").read_text()) for folder in (finished, tmp_path)
    )
    assert list(second["rows"]) == [*first["rows"], "EMA weights, steps 1"]
    assert first["rows"].items() <= second["rows"].items()
    answers = [(folder / "predictions.jsonl").read_text() for folder in (finished, tmp_path)]
    assert answers[0] == answers[1]


@pytest.mark.train
def test_json_of_a_run_with_glove_vectors(run, passes, tmp_path):
    (tmp_path / "glove.txt").write_text("the 1 2 3\na 4 5 6\n")
    options = ["--limit", 8, "--model", "ms2dtan", "--output", tmp_path / "run", "--json"]
    options += ["--glove", tmp_path / "glove.txt"]
    # Of an earlier run, and a file that is none of it.
    (tmp_path / "run" / "checkpoints" / "epoch-0009").mkdir(parents=True)
    (tmp_path / "run" / "mine.txt").touch()
    assert run("train", *QUICK, *options).code == 1
    found = passes("train", *QUICK, *options, "--overwrite")
    assert [one.name for one in (tmp_path / "run/checkpoints").iterdir()] == ["epoch-0001"]
    assert (tmp_path / "run" / "mine.txt").exists()
    assert found.document["files"] == ["metrics.json", "predictions.jsonl", "maps.png", "pipeline"]
    assert found.document["mIoU"] == json.loads((tmp_path / "run/metrics.json").read_text())["mIoU"]
    rows = ["best constant", "raw weights, steps 1", "EMA weights, steps 1"]
    assert list(found.document["rows"]) == rows
    assert "epoch 1/1" in found.err
    assert "GloVe: " in found.err
    assert "there is no checkpoint" not in found.err
    again = run("train", *QUICK, *options, "--resume")
    assert again.document["rows"] == found.document["rows"]
    assert "epoch 1/1" not in again.err
    saved = MomentLocalizationPipeline.from_pretrained(tmp_path / "run" / "pipeline").localizer
    assert saved.config.encoder_config["word_channels"] == 3
    again = run("evaluate", tmp_path / "run" / "pipeline", "--limit", 8, "--json")
    assert again.document["rows"]["steps 1"] == found.document["rows"]["EMA weights, steps 1"]


@pytest.mark.train
def test_windows_in_training_and_whole_videos_in_tests(run, tmp_path):
    options = ["--limit", 16, "--clip-seconds", "1.0", "--output", tmp_path, "--json"]
    # No prior: it is only defined for videos of the grid's length.
    rows = list(run("train", *QUICK, *options).document["rows"])
    assert rows == ["raw weights, steps 2", "EMA weights, steps 2"]


def test_features_of_videos_make_a_pipeline_that_takes_videos(corpus):
    pipeline = MomentLocalizationPipeline.from_pretrained(corpus.pipeline)
    assert pipeline.config.fps == 2
    saved = FrameEncoder.from_pretrained(corpus.encoder)
    assert pipeline.frame_encoder.fingerprint == saved.fingerprint


@pytest.mark.train
def test_without_the_encoder_it_says_so(passes, corpus, tmp_path):
    data = ["--train", corpus.train, "--test", corpus.test, "--features", corpus.features]
    found = passes("train", *QUICK, *data, "--output", tmp_path)
    line = (
        "the pipeline takes features, not videos: its frame encoder has random weights, "
        "which cannot be rebuilt"
    )
    assert line in found.out.splitlines()
    pipeline = MomentLocalizationPipeline.from_pretrained(tmp_path / "pipeline")
    assert (pipeline.frame_encoder, pipeline.config.fps) == (None, 2.0)


def test_queries_that_are_held_out_are_counted_and_need_no_others(
    passes, charades, queries, tmp_path
):
    train = queries("own/a.jsonl", "AAAAA", "BBBBB", times=3)
    data = ["--root", charades, "--features", "timeline", "--train", train, "--holdout", 0.5]
    found = passes("train", *QUICK[:2], "--model", "oracle", *data, "--output", tmp_path)
    shown = found.out.splitlines()
    assert shown[0] == "train: 3 queries of 1 videos; a.jsonl: 6 lines, 6 kept"
    held_out = "3 queries of 1 videos, held out of training; a.jsonl: 6 lines, 6 kept"
    assert shown[1] == f"test: {held_out}"
    assert json.loads((tmp_path / "metrics.json").read_text())["evaluated_on"] == held_out


def test_metrics_say_what_was_run(finished, run, queries, charades, tmp_path):
    summary = json.loads((finished / "metrics.json").read_text())
    written = json.loads((finished / "arguments.json").read_text())
    assert summary["command"] == written["command"] == "train"
    assert summary["options"] == written["options"]
    said = {"preset": "nano", "model": "diffusion", "limit": 16, "ranking": None, "seed": 0}
    assert said.items() <= summary["options"].items()
    used = {"model": "MomentLocalizer", "objective": "mse-full", "ranking": "nms"}
    used |= {"num_inference_steps": 2, "num_samples": 1}
    assert used.items() <= summary.items()
    # Timelines come from --root, whatever the queries.
    train, test = queries("own/a.jsonl", "AAAAA"), queries("own/b.jsonl", "BBBBB")
    data = ["--root", charades, "--features", "timeline", "--train", train, "--test", test]
    run("train", *QUICK[:2], "--model", "prior", *data, "--output", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert summary["annotations"] == {"train": str(train), "test": str(test)}
    assert summary["options"]["features"] == ["timeline"]
    assert summary["features"].startswith("SIMULATED")
    assert summary["evaluated_on"].startswith("2 queries of 1 videos; b.jsonl: 2 lines")


def test_a_used_folder_is_refused(run, finished):
    before = contents(finished)
    found = run("train", *QUICK, "--output", finished)
    assert (found.code, found.err) == (
        1,
        f"error: --output: expected no earlier run in {finished}, got checkpoints, metrics.json, "
        "predictions.jsonl, maps.png, pipeline. Continue it with --resume, replace it with "
        "--overwrite, or choose another folder with --output.\n",
    )
    # A control would leave the other model's answers beside its own metrics.
    found = run("train", *QUICK[:2], "--model", "prior", "--overwrite", "--output", finished)
    assert found.code == 1
    assert "This run does not write such files. Choose another folder with --output." in found.err
    assert contents(finished) == before


@pytest.mark.parametrize("control", ["prior", "oracle"])
def test_controls_write_metrics_alone_and_options_reach_them(run, passes, tmp_path, control):
    options = ["--model", control, "--holdout", 0.25, "--limit", 9, "--output", tmp_path]
    options += ["--clip-seconds", 1.5] if control == "oracle" else []
    found = passes("train", "--preset", "nano", *options, "--json")
    assert found.document["files"] == ["metrics.json"]
    recipe = Recipe("nano", clip_seconds=1.5 if control == "oracle" else None)
    data = LocalizationData.make_up().hold_out(0.25).limit(9)
    assert found.document["rows"] == evaluate_control(control, recipe, data).rows
    assert "Replace it with --overwrite, or" in run("train", "--preset", "nano", *options).err


@pytest.mark.train
def test_settings_reach_the_training_of_a_regressor(passes, tmp_path):
    options = ["--deterministic", "--checkpoint-minutes", 7, "--resume", "--output", tmp_path]
    options += ["--model", "deterministic", "--decoder", "transformer-concat", "--limit", 12]
    found = passes("train", *QUICK, *options)
    assert f"there is no checkpoint in {tmp_path}: training from the start" in found.out
    config = json.loads((tmp_path / "training.json").read_text())
    assert config["deterministic"] is True
    assert config["checkpoint_minutes"] == 7
    (entry,) = json.loads((tmp_path / "history.json").read_text())
    assert entry["epoch"] == 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = ["best constant", "raw weights, steps 1", "EMA weights, steps 1"]
    assert list(metrics["rows"]) == rows
    assert metrics["options"]["model"] == "deterministic"


@pytest.mark.train
def test_didemo_has_its_own_grid_and_metric(run, passes, tmp_path):
    options = ["--dataset", "didemo", "--limit", 12, "--output", tmp_path, "--json"]
    found = passes("train", *QUICK, *options)
    assert {"Rank@1", "Rank@5", "Rank1@0.5"} <= found.document.keys()
    pipeline = MomentLocalizationPipeline.from_pretrained(tmp_path / "pipeline")
    assert int(pipeline.localizer.grid.packed_mask().sum()) == 21
    found = run("evaluate", tmp_path / "pipeline", "--dataset", "didemo", "--limit", 12, "--json")
    before = json.loads((tmp_path / "metrics.json").read_text())
    assert found.document["Rank@1"] == before["Rank@1"]


def test_features_that_are_not_finite_name_the_video(run, corpus, tmp_path):
    for video in ("one", "two", "three"):
        features = np.ones((16, 4), np.float32)
        features[3, 2] = np.nan if video == "two" else 0
        np.save(tmp_path / f"{video}.npy", features)
    data = ["--train", corpus.train, "--test", corpus.test, "--features", tmp_path]
    found = run("train", *QUICK, *data, "--output", tmp_path / "run")
    assert (found.code, found.err.count("\n")) == (1, 1), found.err
    assert "'two'" in found.err


@pytest.mark.train
@pytest.mark.parametrize("model", ["similarity", "deterministic"])
def test_sentences_come_from_a_text_encoder(model, run, passes, tmp_path):
    data = LocalizationData.make_up()
    words = {word for pair in (*data.train, *data.test) for word in pair.query.lower().split()}
    width = data.store.feature_dim
    tiny_text_encoder(sorted(words), width).save_pretrained(tmp_path / "text")
    options = ["--preset", "aligned", "--model", model, "--limit", 8, "--json"]
    options[4:4] = ["--epochs", 1] if model == "deterministic" else []
    options += ["--text-encoder", tmp_path / "text", "--output", tmp_path / "run"]
    found = passes("train", *options)
    saved = MomentLocalizationPipeline.from_pretrained(tmp_path / "run/pipeline")
    assert saved.vocabulary is None
    assert saved.localizer.encoder.config.text_channels == width
    # The candidates of similarity begin and end at any feature of the preset's clips.
    sizes = [saved.localizer.grid.num_clips, saved.localizer.encoder.config.features_per_clip]
    assert sizes == ([80, 1] if model == "similarity" else [40, 2])
    assert ("fitted" in found.err) == (model == "similarity")
    again = passes("evaluate", tmp_path / "run/pipeline", "--limit", 8, "--json")
    assert again.document["rows"]["steps 1"] == found.document["rows"]["EMA weights, steps 1"]
    # The vectors are of the clips' space, or refused.
    tiny_text_encoder(sorted(words), width + 2).save_pretrained(tmp_path / "other")
    options[-3] = tmp_path / "other"
    refused = run("train", *options, "--overwrite")
    assert refused.code == 1
    assert f"{width}" in refused.err
