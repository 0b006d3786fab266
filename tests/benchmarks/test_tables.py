import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from helpers.assertions import refuses

from tmapdiff.errors import ArgumentError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tables"]


@pytest.fixture(autouse=True)
def _separate_runs(tables, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    tables.load_data.cache_clear()

    class Here:
        """Runs in this process: starting others takes seconds."""

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *arguments):
            job = Job()
            try:
                job.found = function(*arguments)
            except Exception as error:
                job.error = error
            return job

    class Job:
        found = error = None

        def result(self):
            if self.error is not None:
                raise self.error
            return self.found

    monkeypatch.setattr(tables, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(tables, "as_completed", list)


@pytest.fixture
def charades(tmp_path) -> Path:
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


def options(tmp_path: Path, *more: str) -> list[str]:
    places = ["--results", f"{tmp_path / 'results'}", "--scratch", f"{tmp_path / 'scratch'}"]
    return [*places, "--device", "cpu", "--epochs", "1", "--steps", "1", "2", *more]


def test_a_table_has_its_rows_in_order_and_a_file_a_run(tables, charades, tmp_path, capsys):
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
        found = [json.loads(tables_result(tmp_path, row, seed).read_text()) for seed in (0, 1)]
        first = next(iter(found[0]["metrics"]))
        mean = sum(one["metrics"][first]["mIoU"] for one in found) / 2
        assert f"{mean:.1f} \u00b1" in line
        assert found[0]["row"]["label"] == row.label
        assert {"versions", "git_commit", "machine", "features", "seconds"} <= found[0].keys()
    assert not any((tmp_path / "scratch").rglob("checkpoints"))


def tables_result(tmp_path: Path, row, seed: int) -> Path:
    return tmp_path / "results" / f"{row.name}-seed{seed}.json"


def test_runs_are_not_repeated_and_are_shared_between_tables(
    tables, charades, tmp_path, capsys, monkeypatch
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
def test_rows_are_what_they_say_with_every_preset(tables, charades, tmp_path, preset):
    terms = tables.Terms(
        didemo=False,
        data=charades,
        features="timeline",
        preset=preset,
        epochs=1,
        steps=(1,),
        holdout=None,
        limit=None,
        scratch=tmp_path,
        results=tmp_path,
        device="cpu",
        threads=1,
    )
    train, _, _ = tables.load_data(terms)
    seen = set()
    for row in tables.TABLES["3"]:
        model = tables.build_model(row, terms.preset_of(row), train, seed=0)
        wanted = row.decoder.get("conditioning", "concat")
        assert model.decoder.config.conditioning == wanted
        assert model.config.ranking == "nms"
        assert model.encoder.config.map_layer == "conv"
        assert model.encoder.config.word_dropout == 0
        seen.add(json.dumps(dict(model.decoder.config), default=str))
    assert len(seen) == len(tables.TABLES["3"])
    for row in tables.TABLES["target"]:
        model = tables.build_model(row, terms.preset_of(row), train, seed=0)
        assert model.config.ranking == tables.PRESETS[preset].localizer.get("ranking", "nms")


def test_results_are_json_with_numbers_in_one_line(tables):
    result = {"a": {"b": [1.5, -2e-05, 3]}, "c": [], "d": ["x, [1,\n2]"], "e": [{"f": [0.25]}]}
    text = tables.to_json(result)
    assert json.loads(text) == result
    assert '"b": [ 1.5, -2e-05, 3 ]' in text


def test_what_diffusion_is_worth(tables, charades, tmp_path, capsys, monkeypatch):
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


def test_a_stopped_run_goes_on(tables, charades, tmp_path, monkeypatch):
    row = tables.Row("diffusion")
    terms = tables.Terms(
        didemo=False,
        data=charades,
        features="timeline",
        preset="nano",
        epochs=2,
        steps=(1,),
        holdout=None,
        limit=None,
        scratch=tmp_path / "scratch",
        results=tmp_path / "results",
        device="cpu",
        threads=1,
    )
    whole = tables.run(row, 0, replace(terms, results=tmp_path / "whole"))
    save = tables.Trainer.save_checkpoint

    def stop_after_one(self):
        save(self)
        if self.progress.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(tables.Trainer, "save_checkpoint", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        tables.run(row, 0, terms)
    assert not terms.result(row, 0).exists()
    monkeypatch.setattr(tables.Trainer, "save_checkpoint", save)
    assert tables.run(row, 0, terms)["metrics"] == whole["metrics"]


def test_didemo_needs_no_files(tables, tmp_path, capsys):
    arguments = options(tmp_path, "--table", "2", "--seeds", "1", "--limit", "8")
    assert tables.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| Rank@1 | Rank@5 | mIoU | Rank1@0.5 |" in printed
    assert "6 clips, 6 durations, 1 scales" in printed


def test_a_failed_run_stops_no_other(tables, charades, tmp_path, capsys, monkeypatch):
    good = tables.TABLES["1"][0]
    monkeypatch.setitem(tables.TABLES, "1", [tables.Row("x", objective="cosine"), good])
    arguments = options(tmp_path, "--table", "1", "--data", f"{charades}", "--seeds", "1")
    assert tables.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "diffusion_cosine seed 0: failed: " in printed
    assert "| x | - |" in printed
    assert "| best constant answer | - |" in printed


@pytest.mark.parametrize("table", [["1", "2"], ["2", "5"]])
def test_two_data_sets_are_refused(tables, tmp_path, table):
    with refuses(ArgumentError, "tables: expected table 2 alone, as it has another data set."):
        tables.main(options(tmp_path, "--table", *table))


def test_data_are_needed(tables, tmp_path, capsys):
    assert tables.main(options(tmp_path, "--table", "1", "--seeds", "1")) == 1
    assert "failed: tables: expected --data, the folder of Charades-STA" in capsys.readouterr().out


def test_every_row_of_tables_3_to_5_is_a_model(tables):
    names = {}
    for table in ("3", "4", "5"):
        for row in tables.TABLES[table]:
            preset = tables.PRESETS["nano"]
            model = preset.build(
                vocabulary_size=9, clip_channels=4, decoder=row.decoder, objective=row.objective
            )
            names.setdefault(row.name, []).append(row.label)
            assert model.objective.name == row.objective
            for field, value in row.decoder.items():
                assert model.decoder.config[field] == value
    assert names["diffusion_mse-full"] == ["cnn-concat", "mse-full", "both"]
    assert [len(labels) for labels in names.values()].count(1) == len(names) - 1
