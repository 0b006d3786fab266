import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from tmapdiff.errors import ConfigError, TmapdiffError

SCRIPT = Path(__file__).parents[2] / "examples" / "train_charades.py"
QUICK = ["--epochs", "1", "--limit", "16", "--device", "cpu"]
KEYS = ["Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_charades", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _separate_runs() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def finished_run(example, tmp_path_factory) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    output = tmp_path_factory.mktemp("run") / "output"
    example.main([*QUICK, "--steps", "1", "2", "--output", str(output)])
    return output


@pytest.fixture
def charades(tmp_path) -> Path:
    """A folder in the form of Charades-STA, of two videos a split."""
    root = tmp_path / "charades"
    root.mkdir()
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,"
    for split, ids in (("train", ("AAAAA", "BBBBB")), ("test", ("CCCCC", "DDDDD"))):
        rows = [f'{vid},S,Room,5,5,Yes,s,o,d,"c001 1.00 9.00;c002 5.00 20.00",30.0' for vid in ids]
        table = "\n".join([header + "actions,length", *rows]) + "\n"
        (root / f"Charades_v1_{split}.csv").write_text(table)
        lines = [f"{vid} 1.0 9.0##a person opens a door.\n" for vid in ids]
        (root / f"charades_sta_{split}.txt").write_text("".join(lines))
    return root


def test_run_writes_all_it_promises(finished_run):
    summary = json.loads((finished_run / "metrics.json").read_text())
    assert all(0 <= summary[key] <= 100 for key in KEYS)
    assert summary["num_inference_steps"] == 1
    assert {"seed", "arguments", "versions", "git_commit", "seconds", "queries_per_second"} <= set(
        summary
    )
    rows = ["best constant", "raw weights, steps 1", "EMA weights, steps 1", "EMA weights, steps 2"]
    assert list(summary["rows"]) == rows
    assert summary["rows"]["EMA weights, steps 1"] == {key: summary[key] for key in KEYS}
    assert "SIMULATED" in summary["features"]
    model = {path.name for path in (finished_run / "model").iterdir()}
    assert {"config.json", "diffusion_pytorch_model.safetensors", "vocabulary.json"} <= model
    lines = (finished_run / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 16
    assert len(json.loads(lines[0])["pred_relevant_windows"]) == 5
    assert (finished_run / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_with_one_seed_give_identical_metrics(example, finished_run, tmp_path):
    example.main([*QUICK, "--steps", "1", "2", "--output", str(tmp_path)])
    first, second = (
        json.loads((folder / "metrics.json").read_text()) for folder in (finished_run, tmp_path)
    )
    assert first["rows"] == second["rows"]
    predictions = [(f / "predictions.jsonl").read_text() for f in (finished_run, tmp_path)]
    assert predictions[0] == predictions[1]


def test_saved_model_evaluates_to_the_same_metrics(example, finished_run, tmp_path):
    model = str(finished_run / "model")
    example.main([*QUICK, "--steps", "1", "--eval-only", model, "--output", str(tmp_path)])
    again = json.loads((tmp_path / "metrics.json").read_text())
    before = json.loads((finished_run / "metrics.json").read_text())
    assert {key: again[key] for key in KEYS} == {key: before[key] for key in KEYS}
    assert not (tmp_path / "model").exists()


def test_resume_of_a_finished_run_trains_no_more(example, finished_run, tmp_path, capsys):
    arguments = [*QUICK, "--steps", "1", "--resume", "--output", str(finished_run)]
    before = (finished_run / "predictions.jsonl").read_text()
    example.main(arguments)
    assert "epoch" not in capsys.readouterr().out
    assert (finished_run / "predictions.jsonl").read_text() == before


def test_a_used_folder_is_refused_before_anything_is_written(example, finished_run):
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    text = (
        f"--output: expected no earlier run in {finished_run}, got checkpoints, metrics.json, "
        "predictions.jsonl, maps.png, model, pipeline. Continue it with --resume, replace it with "
        "--overwrite, or name another folder with --output."
    )
    assert refused(example, *QUICK, "--output", finished_run) == text
    # A control would leave the other model's answers beside its own metrics.
    control = refused(example, *QUICK, "--model", "prior", "--overwrite", "--output", finished_run)
    assert control.endswith("This run does not write such. Name another folder with --output.")
    both = refused(example, *QUICK, "--resume", "--overwrite", "--output", finished_run)
    assert both == "--overwrite: expected no --resume with it, got both."
    after = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    assert after == before


def test_charades_folder_trains_with_simulated_and_with_stored_features(
    example, charades, tmp_path, capsys
):
    common = ["--root", str(charades), "--epochs", "1", "--steps", "1", "--device", "cpu"]
    example.main([*common, "--output", str(tmp_path / "a")])
    assert "SIMULATED" in capsys.readouterr().out

    features = tmp_path / "features"
    features.mkdir()
    for vid in ("AAAAA", "BBBBB", "CCCCC"):
        array = np.random.default_rng(0).normal(size=(60, 1, 1, 12)).astype(np.float32)
        np.save(features / f"{vid}.npy", array)
    AcceleratorState._reset_state(reset_partial_state=True)
    stored = ["--features", str(features), "--seconds-per-feature", "0.5"]
    example.main([*common, *stored, "--output", str(tmp_path / "b")])
    out = capsys.readouterr().out
    assert "DDDDD" in out, "the video without features is reported"
    summary = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert "SIMULATED" not in summary["features"]


def test_glove_vectors_are_used(example, charades, tmp_path, capsys):
    glove = tmp_path / "glove.txt"
    glove.write_text("a 1 2 3\nperson 4 5 6\ndoor 7 8 9\n")
    common = ["--root", str(charades), "--epochs", "1", "--steps", "1", "--device", "cpu"]
    example.main([*common, "--glove", str(glove), "--output", str(tmp_path / "run")])
    assert "GloVe: 3 of " in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["encoder_config"]["word_channels"] == 3
    assert config["encoder_config"]["train_words"] is False


def test_every_flag_has_help(example, capsys):
    with pytest.raises(SystemExit):
        example.parse_arguments(["--help"])
    shown = capsys.readouterr().out
    for flag in ("root", "features", "preset", "epochs", "steps", "seed", "output", "resume"):
        assert f"--{flag}" in shown
    assert shown.count("default:") >= 14


def test_no_arguments_are_the_embedded_default(example):
    args = example.parse_arguments([])
    assert args.root is None
    assert args.preset == "tiny"


def refused(example, *arguments: object) -> str:
    with pytest.raises(TmapdiffError) as error:
        example.main([str(argument) for argument in arguments])
    text = str(error.value)
    assert "\n" not in text
    return text


def test_bad_input_ends_in_one_line(example, charades, tmp_path, finished_run):
    out = ["--output", tmp_path / "out", "--epochs", 1, "--device", "cpu"]

    assert "no such folder" in refused(example, "--root", tmp_path / "none", *out)
    missing = tmp_path / "missing.hdf5"
    assert "missing.hdf5" in refused(example, "--root", charades, "--features", missing, *out)
    truncated = tmp_path / "truncated.hdf5"
    truncated.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    assert "truncated.hdf5" in refused(example, "--root", charades, "--features", truncated, *out)

    text = refused(example, "--eval-only", tmp_path / "no-model", *out)
    assert "cannot load" in text
    for when in (["--eval-only", finished_run / "model"], []):
        assert "num_inference_steps" in refused(example, *when, *out, "--steps", 5000)
    assert not (tmp_path / "out" / "checkpoints").exists(), "refused before training"
    assert "expected seed to be an integer >= 0" in refused(example, *out, "--seed", -1)

    (tmp_path / "file").write_text("")
    text = refused(example, *QUICK, "--output", tmp_path / "file" / "run")
    assert text.startswith("cannot write")
    assert "expected objective to be one of" in refused(example, *QUICK, "--objective", "no", *out)


def test_features_of_another_width_are_refused(example, charades, finished_run, tmp_path):
    features = tmp_path / "features"
    features.mkdir()
    for vid in ("AAAAA", "BBBBB", "CCCCC", "DDDDD"):
        np.save(features / f"{vid}.npy", np.ones((60, 12), dtype=np.float32))
    model, out = str(finished_run / "model"), str(tmp_path / "out")
    data = ["--root", str(charades), "--features", str(features), "--output", out]
    with pytest.raises(ConfigError, match="expected features of 256 channels, as in training, got"):
        example.main([*data, "--device", "cpu", "--eval-only", model])


def test_features_with_nan_name_the_video(example, charades, tmp_path):
    features = tmp_path / "features"
    features.mkdir()
    for vid in ("AAAAA", "BBBBB", "CCCCC", "DDDDD"):
        array = np.ones((60, 12), dtype=np.float32)
        array[3, 4] = np.nan if vid == "BBBBB" else 0
        np.save(features / f"{vid}.npy", array)
    text = refused(
        example, "--root", charades, "--features", features, "--output", tmp_path / "out",
        "--device", "cpu",
    )  # fmt: skip
    assert "BBBBB" in text


def test_command_line_prints_one_line_and_fails(tmp_path):
    command = [sys.executable, str(SCRIPT), "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["--model", "prior"], ["prior"]),
        (["--model", "oracle"], ["oracle"]),
        (["--model", "ms2dtan"], ["best constant", "raw weights, steps 1", "EMA weights, steps 1"]),
        (
            ["--model", "deterministic", "--decoder", "transformer-concat"],
            ["best constant", "raw weights, steps 1", "EMA weights, steps 1"],
        ),
    ],
)
def test_controls_are_one_flag(example, tmp_path, options, rows):
    output = tmp_path / "run"
    example.main([*QUICK, "--preset", "nano", *options, "--output", str(output)])
    summary = json.loads((output / "metrics.json").read_text())
    assert list(summary["rows"]) == rows
    assert summary["arguments"]["model"] == options[1]
    if len(rows) > 1:
        saved = ["--eval-only", str(output / "model"), "--model", options[1]]
        example.main([*QUICK, *saved])
        again = json.loads((output / "evaluation" / "metrics.json").read_text())
        assert again["Rank1@0.5"] == summary["Rank1@0.5"]
    else:
        assert not (output / "model").exists()


def test_evaluation_leaves_the_training_s_results_alone(example, finished_run):
    before = {path.name: path.stat().st_mtime_ns for path in finished_run.iterdir()}
    example.main([*QUICK, "--eval-only", str(finished_run / "model"), "--steps", "1"])
    after = {path.name: path.stat().st_mtime_ns for path in finished_run.iterdir()}
    assert {name: time for name, time in after.items() if name in before} | {
        "evaluation": after["evaluation"]
    } == before | {"evaluation": after["evaluation"]}


def test_samples_and_ranking_reach_the_answers(example, finished_run, tmp_path):
    saved = [*QUICK, "--eval-only", str(finished_run / "model"), "--steps", "1"]
    answers = []
    for number, options in enumerate(([], ["--samples", "3"], ["--ranking", "expected-hits"])):
        output = tmp_path / str(number)
        example.main([*saved, *options, "--output", str(output)])
        answers.append((output / "predictions.jsonl").read_text())
    assert len(set(answers)) == 3


def test_windows_in_training_and_whole_videos_in_tests(example, tmp_path):
    options = ["--preset", "nano", "--clip-seconds", "1.0", "--output", str(tmp_path)]
    example.main([*QUICK, *options])
    summary = json.loads((tmp_path / "metrics.json").read_text())
    # No prior: it knows no longer videos.
    assert list(summary["rows"]) == ["raw weights, steps 2", "EMA weights, steps 2"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--features", "x.h5"], "--features: expected --root with it, got none."),
        (["--seconds-per-feature", "1"], "--seconds-per-feature: expected --features with it"),
        (["--resume", "--model", "prior"], "--resume: expected a model to train with it"),
        (["--resume", "--eval-only", "x"], "--resume: expected a model to train with it"),
        (["--overwrite", "--eval-only", "x"], "--overwrite: expected a run with it, got none."),
        (
            ["--activation-checkpointing", "--eval-only", "x"],
            "--activation-checkpointing: expected a model to train with it",
        ),
        (["--compile", "--model", "oracle"], "--compile: expected a model to train with it"),
        (["--deterministic", "--model", "prior"], "--deterministic: expected a model to train"),
        (
            ["--decoder", "cnn-mul", "--model", "ms2dtan"],
            "--decoder: expected --model diffusion or",
        ),
        (["--steps", "2", "--model", "ms2dtan"], "--steps: expected --model diffusion with it"),
        (["--samples", "2", "--model", "deterministic"], "--samples: expected --model diffusion"),
        (["--samples", "0"], "--samples: expected the number to be an integer >= 1, got 0."),
        (["--ranking", "nms", "--model", "prior"], "--ranking: expected a model that learns with"),
        (["--eval-only", "x", "--model", "oracle"], "--eval-only: expected a trained model with"),
        (["--epochs", "0"], "TrainingConfig: expected epochs to be an integer >= 1, got 0."),
    ],
)
def test_options_that_would_do_nothing_are_refused(example, tmp_path, options, text):
    quick = [] if "--epochs" in options else QUICK
    with pytest.raises(TmapdiffError) as caught:
        example.main([*quick, *options, "--output", str(tmp_path / "new")])
    assert text in str(caught.value)
