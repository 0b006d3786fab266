import json

import h5py
import numpy as np


def test_what_is_right_is_code_0(passes, corpus):
    found = passes("inspect", corpus.train.parent, "--against", corpus.features)
    assert found.out.splitlines()[0] == f"{corpus.train.parent}: annotations"
    assert found.out.splitlines()[-1] == "nothing is wrong"
    for path, against in (
        (corpus.features, corpus.videos),
        (corpus.features, corpus.pipeline),
        (corpus.pipeline, corpus.test),
        (corpus.videos, corpus.train.parent),
    ):
        passes("inspect", path, "--against", against)


def test_findings_are_code_1_and_in_the_document(run, corpus, tmp_path):
    np.save(tmp_path / "one.npy", np.ones((3, 20), np.float32))
    options = ["--against", corpus.train, "--seconds-per-feature", "0.5", "--json"]
    found = run("inspect", tmp_path, *options)
    assert found.code == 1
    document = found.document
    assert document["kind"] == "features"
    assert document["facts"][tmp_path.name]["videos"] == 1
    kinds = {finding["kind"]: finding["items"] for finding in document["findings"]}
    assert kinds == {"missing features": ["two"], "wrong rate": ["one (1.5 s of 8 s)"]}
    lines = run("inspect", tmp_path, *options[:-1]).out.splitlines()
    assert "missing features: 1 annotated videos have no features: two" in lines
    assert lines[-1] == "2 findings"


def test_texts_of_files_do_not_command_the_terminal(run, tmp_path):
    wild = "a\x1b]0;title\x07\x1b[2J"
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs["model"] = np.bytes_(wild.encode())
        file[wild] = np.full((2, 3), np.nan)
    found = run("inspect", tmp_path / "f.h5")
    assert found.code == 1
    assert "a\\x1b]0;title\\x07\\x1b[2J" in found.out
    assert "\x1b" not in found.out + found.err
    assert run("inspect", tmp_path / "f.h5", "--json").document["facts"]["f.h5"]["model"] == wild
    found = run("inspect", tmp_path / wild)
    assert "\x1b" not in found.err


def test_the_format_can_be_named(run, passes, tmp_path):
    (tmp_path / "train.json").write_text(
        json.dumps({"v": {"duration": 9.0, "timestamps": [[0, 3]], "sentences": ["a dog"]}})
    )
    passes("inspect", tmp_path, "--dataset", "activitynet")
    assert run("inspect", tmp_path, "--dataset", "tacos").code == 1
