import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sets
import tables
import torch
from accelerate.state import AcceleratorState
from budgets import format_mean
from helpers.assertions import refuses
from helpers.datasets import write_charades

from tmapdiff import Vocabulary
from tmapdiff.errors import ArgumentError


@pytest.fixture(autouse=True)
def _separate_runs(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    tables.load_data.cache_clear()

    # In this process: starting others takes seconds.
    monkeypatch.setattr(tables, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))


@pytest.fixture
def charades(tmp_path) -> Path:
    actions, sentence = "c001 1.00 9.00;c002 5.00 20.00", "a person opens a door."
    videos = ("AAAAA", "BBBBB"), ("CCCCC", "DDDDD")
    return write_charades(tmp_path / "charades", *videos, actions, [sentence])


def options(tmp_path: Path, *more: str) -> list[str]:
    places = ["--results", f"{tmp_path / 'results'}", "--scratch", f"{tmp_path / 'scratch'}"]
    return [*places, "--device", "cpu", "--epochs", "1", "--steps", "1", "2", *more]


@pytest.mark.train
def test_a_table_has_its_rows_in_order_and_a_file_a_run(charades, tmp_path, capsys):
    arguments = options(tmp_path, "--table", "1", "--data", f"{charades}", "--seeds", "2")
    assert tables.main(arguments) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ")][2:]
    labels = [line.split("|")[1].strip() for line in lines]
    rows = tables.TABLES["1"]
    assert labels == [
        row.label for row in rows for _ in range(2 if row.model == "diffusion" else 1)
    ]
    assert "SIMULATED action timelines" in printed
    assert "nano (16 clips, 8 durations, 2 scales), 1 epochs, 2 pairs" in printed
    assert "| 60.1 / 37.4 / 89.1 / 59.2 |" in printed
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert files == sorted(f"{row.name}-seed{seed}.json" for row in rows for seed in (0, 1))
    for row in rows:
        line = lines[labels.index(row.label)]
        paths = (tmp_path / "results" / f"{row.name}-seed{seed}.json" for seed in (0, 1))
        found = [json.loads(path.read_text()) for path in paths]
        first = next(iter(found[0]["metrics"]))
        mean = sum(one["metrics"][first]["mIoU"] for one in found) / 2
        assert f"{mean:.1f} \u00b1" in line
        assert found[0]["row"]["label"] == row.label
        assert {"versions", "git_commit", "machine", "features", "seconds"} <= found[0].keys()
    assert not any((tmp_path / "scratch").rglob("checkpoints"))


@pytest.mark.train
def test_runs_are_not_repeated_and_are_shared_between_tables(
    charades, tmp_path, capsys, monkeypatch
):
    few = {
        "4": [row for row in tables.TABLES["4"] if row.label in ("bce-full", "mse-full")],
        "5": [row for row in tables.TABLES["5"] if row.label in ("none", "both")],
    }
    monkeypatch.setattr(tables, "TABLES", few)
    arguments = options(tmp_path, "--data", f"{charades}", "--seeds", "1", "--table", "4", "5")
    assert tables.main(arguments) == 0
    # "both" is the run "mse-full".
    assert capsys.readouterr().out.count("seed 0: ") == 3
    monkeypatch.setattr(tables, "run", None)
    assert tables.main(arguments) == 0
    repeated = capsys.readouterr().out
    assert "seed 0: " not in repeated
    assert repeated.count("### Table") == 2
    assert tables.main([*arguments, "--seeds", "5", "--print-only"]) == 0


@pytest.mark.parametrize("preset", ["nano", "best", "base"])
def test_rows_are_what_they_say_with_every_preset(charades, tmp_path, preset):
    terms, seen = tables.Terms(tmp_path, tmp_path, data=charades, preset=preset), set()
    words = Vocabulary(["person"])
    for row in tables.TABLES["3"]:
        with torch.device("meta"):  # no weights are drawn
            model = terms.recipe(row, 0).build(words, 4)
        wanted = row.decoder.get("conditioning", "concat")
        assert model.decoder.config.conditioning == wanted
        assert model.config.ranking == "nms"
        assert model.encoder.config.map_layer == "conv"
        assert model.encoder.config.word_dropout == 0
        seen.add(json.dumps(dict(model.decoder.config), default=str))
    assert len(seen) == len(tables.TABLES["3"])
    for row in tables.TABLES["target"]:
        with torch.device("meta"):
            model = terms.recipe(row, 0).build(words, 4)
        assert model.config.ranking == tables.PRESETS[preset].localizer.get("ranking", "nms")


def test_results_are_json_with_numbers_in_one_line():
    result = {"a": {"b": [1.5, -2e-05, 3]}, "c": [], "d": ["x, [1,\n2]"], "e": [{"f": [0.25]}]}
    text = tables.to_json(result)
    assert json.loads(text) == result
    assert '"b": [ 1.5, -2e-05, 3 ]' in text


@pytest.mark.train
def test_what_diffusion_is_worth(charades, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("budgets.BUDGETS", (1, 10))
    arguments = options(tmp_path, "--table", "target", "steps", "--data", f"{charades}")
    assert tables.main([*arguments, "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    # The steps are those of the target's run.
    assert printed.count("seed 0: ") == 3
    assert "| MS-2D-TAN | 1 | NMS 0.49 | 2 |" in printed
    assert "| diffusion | 10 | expected hits | 2 |" in printed
    # Of the same seed: what the two files say.
    names = ("diffusion_mse-rescaled_budgets", "ms2dtan_bce-rescaled_budgets")
    gains = []
    for seed in (0, 1):
        ours, theirs = (
            json.loads((tmp_path / "results" / f"{name}-seed{seed}.json").read_text())["budgets"]
            for name in names
        )
        best = [one for one in ours if (one["recipe"], one["passes"]) == ("samples", 10)]
        value = next(one["metrics"]["mIoU"] for one in best if one["reading"] == "expected hits")
        gains.append(value - theirs[0]["metrics"]["mIoU"])
    line = next(
        line
        for line in printed.split("Differences")[1].splitlines()
        if line.startswith("| MS-2D-TAN | 10 | NMS 0.49 | 2 |")
    )
    assert line.split("|")[-2].strip().startswith(f"{sum(gains) / 2:+.1f} ")


def test_a_failed_run_stops_no_other(charades, tmp_path, capsys, monkeypatch):
    good = tables.TABLES["1"][0]
    monkeypatch.setitem(tables.TABLES, "1", [tables.Row("x", objective="cosine"), good])
    arguments = options(tmp_path, "--table", "1", "--data", f"{charades}", "--seeds", "1")
    assert tables.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "diffusion_cosine seed 0: failed: " in printed
    assert "| x | - |" in printed
    assert "| best constant answer | - |" in printed


def test_two_data_sets_are_refused(tmp_path):
    for pair in (["1", "2"], ["2", "5"], ["qvhighlights", "1"]):
        with refuses(
            ArgumentError, "tables: expected tables of one data set, got those of several."
        ):
            tables.main(options(tmp_path, "--table", *pair))


def test_rows_that_would_be_alike_are_refused(tmp_path):
    arguments = options(tmp_path, "--table", "qvhighlights-parts", "--preset", "nano")
    with refuses(ArgumentError, "a preset with an aligned encoder", "got --preset nano."):
        tables.main(arguments)


def test_each_trained_row_needs_its_tuned_settings(tmp_path):
    settings = {"diffusion_mse-rescaled_budgets": {"epochs": 3}}
    (tmp_path / "tuned.json").write_text(json.dumps(settings))
    arguments = options(tmp_path, "--tuned", f"{tmp_path / 'tuned.json'}", "--print-only")
    assert tables.main([*arguments, "--table", "steps"]) == 0
    with refuses(ArgumentError, "settings of ms2dtan_bce-rescaled_budgets, got none."):
        tables.main([*arguments, "--table", "target"])


def test_results_on_other_terms_are_refused(tmp_path):
    folder, (row,) = tmp_path / "results", tables.TABLES["steps"]
    folder.mkdir()
    arguments = options(tmp_path, "--table", "steps", "--print-only")
    for other in ({"held_out_training_videos": 0.1}, {"preset": "best"}, {"epochs": 2}):
        (folder / f"{row.name}-seed0.json").write_text(json.dumps(other))
        with refuses(ArgumentError, f"expected {next(iter(other))} = ", "Name another --results."):
            tables.main(arguments)


def test_data_are_needed(tmp_path, capsys):
    assert tables.main(options(tmp_path, "--table", "1", "--seeds", "1")) == 1
    assert "failed: tables: expected --data, the folder of charades-sta" in capsys.readouterr().out


def test_trials_cover_the_values_of_each_setting_evenly(tmp_path):
    terms, row = tables.Terms(tmp_path, tmp_path), tables.TABLES["target"][0]
    trials = [trial.settings for trial in tables.trials_of(row, 7, terms)]
    assert trials[0] == {}
    for name, values in tables.SPACE.items():
        assert sorted(one[name] for one in trials[1:]) == sorted([*values, *values])
    assert [one.settings for one in tables.trials_of(row, 4, terms)] == trials[:4]


@pytest.mark.train
def test_every_row_gets_the_same_trials_and_its_best_settings(
    charades, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tables, "SPACE", {**tables.SPACE, "epochs": (1,)})
    monkeypatch.setattr(tables, "TABLES", {"1": tables.TABLES["1"][:3]})
    with open(charades / "charades_sta_train.txt", "a") as file:
        file.writelines(f"{video} 5.0 20.0##a person sits down.\n" for video in ("AAAAA", "BBBBB"))
    data = ("--data", f"{charades}", "--table", "1")
    assert tables.main(options(tmp_path, *data, "--tune", "2", "--holdout", "0.5")) == 0
    printed = capsys.readouterr().out
    terms = tables.Terms(tmp_path, tmp_path, data=charades)
    trained = [row for row in tables.TABLES["1"] if row.is_trained]
    for row in trained:
        default, drawn = tables.trials_of(row, 2, terms)
        assert default == row
        assert all(drawn.settings[name] in values for name, values in tables.SPACE.items())
        assert drawn.settings == tables.trials_of(trained[0], 2, terms)[1].settings
        assert printed.count(f"| {row.label} |") == 2
    chosen = json.loads((tmp_path / "results/tuned.json").read_text())
    assert list(chosen) == [row.name for row in trained]

    tuned = chosen | {trained[0].name: {"channels": 64, "dropout": 0.3, "learning_rate": 1e-3}}
    (tmp_path / "tuned.json").write_text(json.dumps(tuned))
    few = ("--tuned", f"{tmp_path / 'tuned.json'}", "--seeds", "1")
    row = replace(trained[0], settings=tuned[trained[0].name])
    # Trials on held-out videos are no results on the test set.
    with refuses(ArgumentError, "expected held_out_training_videos = None of all results, got 0.5"):
        tables.main(options(tmp_path, *data, "--seeds", "1"))
    assert tables.main(options(tmp_path, *data, *few, "--results", f"{tmp_path / 'final'}")) == 0
    found = json.loads((tmp_path / f"final/{row.name}-seed0.json").read_text())
    assert found["training"]["learning_rate"] == 1e-3
    encoder = terms.recipe(row, 0).preset_for("rank").encoder
    assert (encoder["channels"], encoder["dropout"]) == (64, 0.3)


@pytest.mark.train
def test_sets_are_compared_with_the_twin_s_of_the_same_seed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sets, "PASSES", (1, 5))
    monkeypatch.setitem(tables.TABLES, "made-up-sets", tables.TABLES["made-up-sets"][1:3])
    arguments = options(tmp_path, "--table", "made-up-sets", "--limit", "20", "--seeds", "2")
    assert tables.main(arguments) == 0
    several = capsys.readouterr().out.split("Of queries with several moments")[1]
    names, gains = ("diffusion_mse-rescaled_sets", "deterministic_mse-rescaled_sets"), []
    for seed in (0, 1):
        paths = (tmp_path / "results" / f"{name}-seed{seed}.json" for name in names)
        ours, theirs = (
            next(
                one["metrics"]["Set-F1@0.5"]
                for one in json.loads(path.read_text())["sets"]
                if one["queries"] == "queries with several moments"
                and one["way"] in ("one map", "5 of 1 step, minimum Bayes risk")
            )
            for path in paths
        )
        gains.append(ours - theirs)
    (line,) = (
        line
        for line in several.splitlines()
        if line.startswith("| diffusion | 5 of 1 step, minimum Bayes risk | 5 | 2 |")
    )
    assert line.endswith(f"| {format_mean(gains, signed=True)} |")


def test_the_truth_of_made_up_sets_is_known():
    videos, annotations = sets.make_up_sets("test", 40)
    counts, interrupted = [], 0
    for item in annotations:
        deed = next(i for i, name in enumerate(sets._DEEDS) if f" {name} " in item.query)
        done = [(start, end) for one, start, end in videos[item.video_id].actions if one == deed]
        counts.append(len(item.moments))
        bounds = {time for part in done for time in part}
        assert {time for moment in item.moments for time in moment} <= bounds
        assert bool(item.moments) == bool(done)
        whole = len(item.moments) < len(done)
        interrupted += whole
        assert whole or sorted(item.moments) == sorted(done)
    assert counts.count(0) == 40
    assert set(counts) >= {0, 1, 2, 3, 4}
    assert interrupted


def test_one_coin_decides_for_all_moments_of_a_query(monkeypatch):
    class Loaded:
        def __init__(self, name):
            self.fair = generator_for(name)

        def __getattr__(self, name):
            return getattr(self.fair, name)

        def integers(self, sides):
            self.fair.integers(sides)
            return side

    generator_for = sets.generator_for
    monkeypatch.setattr(sets, "generator_for", Loaded)
    side = 1
    _, halved = sets.make_up_sets("test", 10)
    side = 0
    _, whole = sets.make_up_sets("test", 10)
    joined = 0
    for parts, moments in zip(halved, whole, strict=True):
        for start, end in moments.moments:
            inside = [part for part in parts.moments if start <= part[0] and part[1] <= end]
            assert (inside[0][0], inside[-1][1]) == (start, end)
            assert len(inside) <= 2
            joined += len(inside) - 1
        assert len(parts.moments) >= len(moments.moments)
    assert joined == sum(len(one.moments) for one in halved) - sum(
        len(one.moments) for one in whole
    )
    assert joined > 10


@pytest.mark.train
def test_whether_a_sentence_is_of_another_video_is_measured_on_other_videos(tmp_path):
    terms = tables.Terms(tmp_path, tmp_path, dataset="made-up-sets", limit=150, epochs=1)
    held_out = tables.load_data(terms).hold_out(0.1)
    for model in ("deterministic", "ms2dtan"):
        result = tables.run(tables.Row("x", model=model, negatives=0.2), 0, terms)
        assert 0 <= result["metrics"]["1"]["Presence-AUROC"] <= 100
        assert result["trained_on"] == f"{len(held_out.train)} pairs"
        assert result["training"]["negatives"] == 0.2


def test_moments_of_other_lengths_are_tested(charades):
    terms = tables.Terms(charades, charades, data=charades)
    data = tables.load_data(terms)
    lengths = [3.0, 5.0, 8.0, 13.0]
    items = [
        replace(data.train[0], qid=qid, moments=((1.0, 1.0 + length),))
        for qid, length in enumerate(lengths)
    ]
    every = type(data.train)(items, data.train.report)
    for trained_on, train, test in (("short", [3, 5], [8, 13]), ("long", [8, 13], [3, 5])):
        found = tables.split_lengths(replace(data, train=every, test=every), trained_on)
        assert [item.moments[0][1] - 1 for item in found.train] == train
        assert [item.moments[0][1] - 1 for item in found.test] == test


def test_a_row_is_fitted_and_read_for_one_threshold(tmp_path, monkeypatch):
    terms = tables.Terms(tmp_path, tmp_path, dataset="made-up-sets", preset="aligned", limit=40)
    data, seen = tables.load_data(terms), []
    items = [item for item in data.train if item.moments]
    answered = type(data.train)(items, data.train.report)
    words = {item.query: torch.rand(1, data.store.feature_dim) for item in items}
    data = replace(data, train=answered, test=answered, word_features=words)

    def evaluate(model, dataset, **options):
        seen.append((model.config.target_power, options.get("hit_thresholds")))
        return real(model, dataset, **options)

    real = tables.evaluate
    monkeypatch.setattr(tables, "load_data", lambda _: data)
    monkeypatch.setattr(tables, "evaluate", evaluate)
    for row in tables.TABLES["qvhighlights-similarity"][1:]:
        # Rows that are tested on other lengths have the preset's ranking.
        tables.run(replace(row, lengths="short"), 0, terms)
    assert seen == [(8.0, None), (12.0, [0.5])]
