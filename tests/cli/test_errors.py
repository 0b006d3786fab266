"""Errors: exit code 1, and one line that says what is wrong."""

import shlex

import numpy as np
import pytest

URL = "https://host/a.mp4"
NO_URL = f"expected a path, got {URL}. URLs are not supported: download the file first."
ENCODER = "--model test_resnet --random-weights --out {tmp}/x.h5"
ON_TEST = "{corpus.pipeline} --test {corpus.test} --features"
SOME = "--train {corpus.train} --test {corpus.test} --output {tmp}/run --features"
ASKED = "'the number 2 is shown' --model {corpus.pipeline}"
FILM = "localize {corpus.videos}/three.mp4"
LONG = "x" * 300  # no name of a file
CASES = {
    "convert {tmp}/none {tmp}/b --json": "error: open_feature_store: expected an HDF5 file",
    "convert timeline {tmp}/b --root {tmp}/none": "Charades_v1_train.csv in",
    "export {tmp}/none": "no such folder",
    "evaluate {tmp}/none": "cannot load",
    f"evaluate {ON_TEST} {{tmp}}": "channels, as in training, got 5 from",
    "evaluate {corpus.pipeline} --root {corpus.test.parent} --features timeline": "Charades_v1",
    "evaluate {finished}/pipeline --dataset didemo": "a pipeline with DiDeMo's 21 moments",
    "evaluate {finished}/pipeline --steps 0": "expected steps to be an integer >= 1, got 0",
    f"extract {{tmp}}/none {ENCODER}":
        "cannot read the folder {tmp}/none: No such file or directory.",
    f"extract {{tmp}} {ENCODER} --device cuda:99":
        "--device: expected a device of this machine, got 'cuda:99'",
    "extract {tmp} --frame-encoder {tmp}/none --out {tmp}/x.h5": "cannot load",
    f"extract {URL} {ENCODER}": NO_URL,
    "inspect {tmp}/none --json": "error: inspect: expected something at {tmp}/none, got nothing.\n",
    "inspect {corpus.videos} --against {corpus.pipeline}":
        "expected something that videos can be compared with, got pipeline",
    f"inspect {URL}": NO_URL,
    f"localize {URL} 'a dog' --model {{tmp}}": NO_URL,
    f"{FILM} 'a dog' --model {{tmp}}/none": "there is no such folder",
    f"localize {{tmp}}/none.mp4 {ASKED}": "none.mp4",
    f"localize {{tmp}}/none.mp4 '{'the number ' * 40}' --model {{corpus.pipeline}}": "none.mp4",
    f"localize {LONG}.mp4 {ASKED}": "xxx.mp4",
    f"{FILM} {ASKED} --out {{tmp}}/{LONG}": "xxx",
    f"localize {{tmp}}/broken.mp4 {ASKED}": "broken.mp4",
    f"{FILM} '?!' --model {{corpus.pipeline}}": "expected a sentence with a word, got '?!'.",
    f"{FILM} {ASKED} --top 0": "expected top_n to be an integer >= 1, got 0.",
    f"{FILM} {ASKED} --saliency 0 --json": "--saliency in (0, inf), got 0.0.",
    f"{FILM} a --model {{finished}}/pipeline": "expected features of the video, got",
    f"localize four {ASKED} --features {{corpus.features}}": "features of 'four', got none",
    "train --output {tmp}/run --root {tmp}/none --features timeline --test-split val":
        "got no such folder.",
    f"train {SOME} x.h5": "nothing at x.h5",
    f"train {SOME} {{tmp}}/truncated.h5": "truncated.h5",
    "train --output {tmp}/run --steps 5000": "num_inference_steps",
    "train --output {tmp}/run --samples 0": "expected num_samples to be an integer >= 1, got 0.",
    "train --output {tmp}/run --seed -1": "expected seed to be an integer >= 0, got -1.",
    "train --output {tmp}/run --objective no": "expected objective to be one of",
    "train --output {tmp}/run --epochs 0": "expected epochs to be an integer >= 1, got 0.",
    "train --output {tmp}/run --checkpoint-minutes 0":
        "expected checkpoint_minutes in (0, inf), got 0.0.",
    "train --output {tmp}/file/run": "cannot write",
}  # fmt: skip


@pytest.mark.parametrize("line", CASES, ids=lambda line: line[:60])
def test_errors_are_one_line(run, corpus, finished, tmp_path, line):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "truncated.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    (tmp_path / "file").touch()
    np.save(tmp_path / "three.npy", np.ones((16, 5), np.float32))
    places = {"tmp": tmp_path, "corpus": corpus, "finished": finished}
    command, *options = shlex.split(line.format(**places))
    found = run(command, *options)
    assert (found.code, found.err.count("\n")) == (1, 1), found.err
    assert found.err.startswith("error: ")
    assert CASES[line].format(**places) in found.err
    assert not found.out or command in ("train", "evaluate")  # which say first what the data are
    assert not (tmp_path / "run" / "checkpoints").exists()
