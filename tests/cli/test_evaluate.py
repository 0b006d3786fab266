import json
import shutil
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from helpers.processes import run_processes

from tmapdiff import MomentLocalizationPipeline, recipes
from tmapdiff.cli import main
from tmapdiff.data import Prediction, write_submission

KEYS = ["Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU"]


def test_a_pipeline_evaluates_to_what_training_said(passes, finished):
    times = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    found = passes("evaluate", finished / "pipeline", "--limit", 16, "--device", "cpu", "--json")
    assert {path: path.stat().st_mtime_ns for path in times} == times, "training's results stay"
    before = json.loads((finished / "metrics.json").read_text())
    assert {key: found.document[key] for key in KEYS} == {key: before[key] for key in KEYS}
    folder = finished / "evaluation"
    for name in ("predictions.jsonl", "metrics.json"):
        assert (folder / name).exists()
    predictions = [(one / "predictions.jsonl").read_text() for one in (finished, folder)]
    assert predictions[0] == predictions[1]


@pytest.mark.process
def test_several_processes_evaluate_as_one(finished, tmp_path):
    options = ["--limit", "16", "--device", "cpu", "--output", str(tmp_path)]
    command = partial(main, ["evaluate", str(finished / "pipeline"), *options])
    printed = run_processes(command, 2, tmp_path / "logs")
    assert f"written to {tmp_path}" in printed
    assert "written to" not in (tmp_path / "logs" / "process-1.log").read_text()
    one, two = (json.loads((one / "metrics.json").read_text()) for one in (finished, tmp_path))
    assert {key: two[key] for key in KEYS} == pytest.approx({key: one[key] for key in KEYS})
    answers = [(one / "predictions.jsonl").read_text().count("\n") for one in (finished, tmp_path)]
    assert answers == [16, 16]


def test_each_number_of_steps_is_a_row(passes, corpus, tmp_path):
    data = ["--test", corpus.test, "--features", corpus.features, "--output", tmp_path]
    found = passes("evaluate", corpus.pipeline, *data, "--steps", 1, "--steps", 3, "--samples", 2)
    rows = [line.split()[:2] for line in found.out.splitlines()]
    assert [row for row in rows if row[:1] == ["steps"]] == [["steps", "1"], ["steps", "3"]]
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert (summary["num_inference_steps"], list(summary["rows"])) == (1, ["steps 1", "steps 3"])


@pytest.mark.filterwarnings("default:the pipeline uses:UserWarning")
def test_features_of_another_frame_encoder_cause_a_warning(run, corpus, tmp_path):
    other = tmp_path / "other.h5"
    shutil.copy(corpus.features, other)
    with h5py.File(other, "a") as file:
        file.attrs["model_sha256"] = np.bytes_(b"0")
    options = ["--steps", 1, "--output", tmp_path, "--test", corpus.test]
    for command in (
        ["evaluate", corpus.pipeline, *options],
        ["localize", "three", "the number 1 is shown", "--model", corpus.pipeline],
    ):
        for features in (corpus.features, other):
            found = run(*command, "--features", features)
            assert found.code == 0
            told = "warning: the pipeline uses timm test_resnet" in found.err
            assert told == (features == other)


def test_half_precision_and_a_seed(passes, corpus, tmp_path, monkeypatch):
    seen, evaluate_localizer = [], recipes.evaluate_localizer

    def spy(localizer, test_set, sampling, **options):
        seen.append((localizer.dtype, sampling.seed))
        return evaluate_localizer(localizer, test_set, sampling, **options)

    monkeypatch.setattr(recipes, "evaluate_localizer", spy)
    data = ["--test", corpus.test, "--features", corpus.features, "--output", tmp_path]
    passes("evaluate", corpus.pipeline, *data, "--dtype", "bfloat16", "--seed", 3)
    assert seen == [(torch.bfloat16, 3)]


def test_sets_have_metrics_of_their_own(passes, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    data = ["--test", corpus.test, "--features", corpus.features, "--output", tmp_path]
    found = passes("evaluate", corpus.pipeline, *data, "--answer", "set", "--samples", 2)
    assert all(name in found.out for name in ("Rank1@0.5", "set F1@0.5", "count error", "exact"))
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert (summary["answer"], summary["ranking"]) == ("set", None)
    assert {"Set-F1@0.5", "Set-F1@0.7", "Set-count-error", "Set-exact"} <= summary.keys()


def test_runs_that_differ_in_any_option_can_be_told_apart(passes, corpus, tmp_path):
    data = ["--test", corpus.test, "--features", corpus.features, "--device", "cpu", "--output"]
    options = {"ranking": ["expected-hits"], "samples": 2, "steps": [1], "seed": 1, "limit": 2,
               "seconds_per_feature": 0.5}  # fmt: skip
    more = []
    for name, value in options.items():
        given = value[0] if isinstance(value, list) else value
        more += [f"--{name.replace('_', '-')}", given]
    told = []
    for folder, options_of_run in (("one", []), ("other", more)):
        passes("evaluate", corpus.pipeline, *data, tmp_path / folder, *options_of_run)
        told.append(json.loads((tmp_path / folder / "metrics.json").read_text()))
    one, other = told
    assert one["command"] == other["command"] == "evaluate"
    differ = {name for name in one["options"] if one["options"][name] != other["options"][name]}
    assert differ == {*options, "output"}
    assert {name: other["options"][name] for name in options} == options
    assert (other["ranking"], other["num_samples"]) == ("expected-hits", 2)
    # And what the model chose where nothing was said.
    config = MomentLocalizationPipeline.from_pretrained(corpus.pipeline).localizer.config
    assert not one["options"]["ranking"]
    for name in ("ranking", "num_samples", "num_inference_steps", "objective"):
        assert one[name] == config[name]
    assert one["annotations"] == {"test": str(corpus.test)}
    assert one["pipeline"] == str(corpus.pipeline)


def test_several_files_and_rankings_are_evaluated_by_a_model_loaded_once(
    run, passes, corpus, tmp_path, monkeypatch
):
    loads = []
    load = MomentLocalizationPipeline.from_pretrained.__func__

    def counted(cls, place, **options):
        loads.append(place)
        return load(cls, place, **options)

    tests, rankings = (corpus.test, corpus.train), ("expected-hits", "nms")
    common = ["--features", corpus.features, "--steps", 2, "--json", "--output"]
    alone = {
        test.stem: run("evaluate", corpus.pipeline, "--test", test, "--ranking", ranking,
                                  *common, tmp_path / f"{test.stem}-{ranking}").document
        for test, ranking in zip(tests, rankings, strict=True)
    }  # fmt: skip
    monkeypatch.setattr(MomentLocalizationPipeline, "from_pretrained", classmethod(counted))
    several = [option for test in tests for option in ("--test", test)]
    several += [option for ranking in rankings for option in ("--ranking", ranking)]
    found = passes("evaluate", corpus.pipeline, *several, *common, tmp_path / "all")
    assert len(loads) == 1
    assert set(found.document["tests"]) == {"test", "train"}
    for test, ranking in zip(tests, rankings, strict=True):
        document, folder = found.document["tests"][test.stem], tmp_path / "all" / test.stem
        assert document["rows"][f"{ranking}, steps 2"] == alone[test.stem]["rows"]["steps 2"]
        assert list(document["rows"]) == [f"{one}, steps 2" for one in rankings]
        assert document["ranking"] == "expected-hits", "the first counts"
        assert json.loads((folder / "metrics.json").read_text())["rows"] == document["rows"]
        assert (folder / "maps.png").exists()
    places = (tmp_path / "all" / "test", tmp_path / "test-expected-hits")
    answers = [(place / "predictions.jsonl").read_text() for place in places]
    assert answers[0] == answers[1]


def test_the_protocol_of_qvhighlights_and_a_score_of_what_it_wrote(run, passes, corpus, tmp_path):
    data = ["--test", corpus.test, "--features", corpus.features, "--output", tmp_path]
    found = passes("evaluate", corpus.pipeline, *data, "--protocol", "qvhighlights")
    (head,) = (line for line in found.out.splitlines() if "mAP@0.75" in line)
    # No moment is longer than 10 s, and there is no saliency.
    assert head.split() == ["R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP", "short", "mAP"]
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["options"]["protocol"] == "qvhighlights"
    assert {*KEYS, "MR-full-R1@0.95", "MR-full-mAP", "MR-short-mAP@0.6"} <= told.keys()
    rows = [line.split()[2:] for line in found.out.splitlines() if line.split()[:1] == ["steps"]]
    names = ("R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP")
    shown = [f"{told[f'MR-full-{name}']:.2f}" for name in names]
    assert rows == [[*shown, f"{told['MR-short-mAP']:.2f}"]]

    answers = ["score", tmp_path / "predictions.jsonl", "--test", corpus.test]
    scored = passes(*answers, "--protocol", "qvhighlights", "--json").document
    assert {name for name in told if name.startswith("MR-")} < scored.keys()
    by_rank = passes(*answers, "--json").document
    for name, value in {**scored, **by_rank}.items():
        if isinstance(value, float):
            assert value == pytest.approx(told[name], abs=1e-3)
    assert set(KEYS) < by_rank.keys()
    wrong = run("score", tmp_path / "predictions.jsonl", "--test", corpus.train)
    assert (wrong.code, wrong.err.count("\n")) == (1, 1)
    assert "a prediction for each query" in wrong.err


def test_the_consensus_of_didemo_is_scored(passes, tmp_path):
    record = {"annotation_id": 0, "video": "v", "description": "a dog", "num_segments": 6,
              "times": [[0, 0], [1, 1], [1, 1], [1, 1]]}  # fmt: skip
    (tmp_path / "test_data.json").write_text(json.dumps([record]))
    answers = tmp_path / "answers.jsonl"
    write_submission([Prediction(0, "a dog", "v", ((0, 5, 1),))], answers)
    found = passes("score", answers, "--test", tmp_path / "test_data.json", "--json")
    assert found.document["Rank1@0.5"] == 0
