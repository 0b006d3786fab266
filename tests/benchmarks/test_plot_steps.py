import json

import plot_steps
import pytest
from helpers.assertions import refuses
from PIL import Image

from tmapdiff.errors import FileError


def run_of(label, seed, **results):
    return {"row": {"label": label}, "seed": seed, "features": "SIMULATED (seed 0)", **results}


def test_seeds_are_gathered_by_model_and_step():
    runs = [
        run_of("one", 0, metrics={"1": {"R": 10.0}, "5": {"R": 11.0}}),
        run_of("one", 1, metrics={"1": {"R": 20.0}, "5": {"R": 21.0}, "9": {"R": 0.0}}),
        run_of("constant", 0, metrics={"0": {"R": 3.0, "other": 1.0}}),
    ]
    assert plot_steps.read_curves(runs, "R", "NMS 0.49") == {
        "one": ([1, 5], [[10.0, 11.0], [20.0, 21.0]]),
        "constant": ([1], [[3.0]]),
    }
    assert plot_steps.read_curves(runs, "other", "NMS 0.49") == {"constant": ([1], [[1.0]])}


def test_budgets_give_a_line_for_each_way_to_spend_them():
    budgets = [
        {"recipe": recipe, "passes": passes, "reading": reading, "metrics": {"R": value}}
        for recipe, passes, reading, value in (
            ("samples", 1, "expected hits", 1.0),
            ("samples", 2, "expected hits", 2.0),
            ("ddim", 2, "expected hits", 3.0),
            ("ddim", 2, "NMS 0.49", 4.0),
        )
    ]
    runs = [run_of("many", 0, budgets=budgets), run_of("one", 0, budgets=budgets[:1])]
    assert plot_steps.read_curves(runs, "R", "expected hits") == {
        "many, samples": ([1, 2], [[1.0, 2.0]]),
        "many, ddim": ([2], [[3.0]]),
        "one": ([1], [[1.0]]),
    }
    assert plot_steps.read_curves(runs, "R", "NMS 0.49") == {"many": ([2], [[4.0]])}


def test_the_picture_is_written(tmp_path):
    for seed in (0, 1):
        run = run_of("one", seed, metrics={"1": {"R": 10.0 + seed}, "5": {"R": 11.0}})
        (tmp_path / f"one-seed{seed}.json").write_text(json.dumps(run))
    picture = tmp_path / "new" / "steps.png"
    plot_steps.main([f"{tmp_path}", "--metric", "R", "--output", f"{picture}"])
    with Image.open(picture) as image:
        assert image.size[0] > image.size[1] > 300


@pytest.mark.parametrize("models", [[], ["--models", "two"]])
def test_folders_without_runs_are_refused(tmp_path, models):
    if models:
        run = run_of("one", 0, metrics={"1": {"Rank1@0.5": 10.0}})
        (tmp_path / "one.json").write_text(json.dumps(run))
    with refuses(FileError, "plot_steps: expected runs", "with Rank1@0.5 in", "found none."):
        plot_steps.main([f"{tmp_path}", *models, "--output", f"{tmp_path / 'steps.png'}"])
