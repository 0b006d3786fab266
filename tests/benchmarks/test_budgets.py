import pytest
import torch
from budgets import READINGS, RECIPES, format_mean, maps_of, measure_budgets, print_steps
from helpers.contracts import randomize_
from helpers.oracles import OracleDecoder
from helpers.training import make_dataset, make_model

from tmapdiff.evaluation import evaluate


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(1, "test")


def make(dataset, **fields):
    return randomize_(make_model(dataset, objective="mse-rescaled", **fields)).eval()


@torch.no_grad()
def features_of(model, count=3):
    shapes = model.grid.shapes
    return [torch.randn(count, model.encoder.config.channels, *shape) for shape in shapes]


@pytest.fixture(autouse=True)
def _few_budgets(monkeypatch):
    monkeypatch.setattr("budgets.BUDGETS", (1, 2, 5))


@torch.no_grad()
def test_samples_are_averaged(dataset):
    model = make(dataset)
    features, seeds = features_of(model), [4, 5, 6]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    samples = model.draw_samples(features, 5, generator=generators, num_inference_steps=1)
    found = dict(maps_of("samples", model, features, seeds))
    assert list(found) == [1, 2, 5]
    for passes, maps in found.items():
        torch.testing.assert_close(maps, samples[:, :passes].mean(dim=1))


@torch.no_grad()
def test_one_pass_is_the_same_however_it_is_spent(dataset):
    model = make(dataset)
    features = features_of(model)
    ones = [dict(maps_of(recipe, model, features, [4, 5, 6]))[1] for recipe in RECIPES]
    for one in ones[1:]:
        torch.testing.assert_close(one, ones[0])
    more = [dict(maps_of(recipe, model, features, [4, 5, 6]))[5] for recipe in RECIPES]
    for one in more[1:]:
        assert float((one - more[0]).abs().max()) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_perfect_denoiser_is_perfect_at_every_budget(dataset, recipe):
    model = make(dataset)
    truth = torch.rand(3, model.grid.num_cells) * model.grid.packed_mask()
    features = features_of(model)
    model.decoder = OracleDecoder(model.grid, truth)
    for passes, maps in maps_of(recipe, model, features, [4, 5, 6]):
        torch.testing.assert_close(maps, truth, msg=f"{passes} passes")
    if recipe == "frozen t":
        assert set(model.decoder.timesteps) == {999}
    if recipe == "fresh noise":
        assert model.decoder.timesteps == [999, 999, 499, 999, 799, 599, 399, 199]


@torch.no_grad()
def test_steps_of_ddim_are_those_of_evaluate(dataset):
    model = make(dataset)
    found = measure_budgets(model, dataset, seed=3)["budgets"]
    for reading, options in (
        ("NMS 0.49", {"ranking": "nms"}),
        ("expected hits", {"ranking": "expected-hits"}),
    ):
        for passes in (1, 5):
            expected = evaluate(model, dataset, seed=3, num_inference_steps=passes, **options)
            (one,) = [
                entry["metrics"]
                for entry in found
                if (entry["recipe"], entry["passes"], entry["reading"]) == ("ddim", passes, reading)
            ]
            assert one == pytest.approx(expected.metrics)


@torch.no_grad()
def test_the_costly_control_stops_early(dataset, monkeypatch):
    monkeypatch.setattr("budgets.LARGEST_CONTROL", 2)
    model = make(dataset)
    found = {
        recipe: dict(maps_of(recipe, model, features_of(model), [4, 5, 6])) for recipe in RECIPES
    }
    assert {recipe: max(maps) for recipe, maps in found.items()} == {
        "samples": 5,
        "ddim": 5,
        "fresh noise": 2,
        "frozen t": 5,
    }


def test_everything_is_measured(dataset, capsys):
    result = measure_budgets(make(dataset), dataset, seed=0)
    assert len(result["budgets"]) == len(RECIPES) * 3 * len(READINGS)
    assert all(entry["seconds"] > 0 for entry in result["budgets"])
    certainty = result["certainty"]["samples, 1 passes"]
    assert len(certainty["confidence"]) == len(certainty["iou"]) == len(dataset)
    twin = measure_budgets(make(dataset, deterministic=True), dataset, seed=0)
    assert {entry["passes"] for entry in twin["budgets"]} == {1}
    print_steps([{**result, "seed": 0}], ["mIoU"])
    printed = capsys.readouterr().out
    assert printed.count("`: ") == len(RECIPES)
    assert printed.count("| 5 | expected hits |") == len(RECIPES)


def test_means():
    assert format_mean([]) == "-"
    assert format_mean([1.0]) == "1.0"
    assert format_mean([1.0, 3.0], signed=True) == "+2.0 ± 1.4"
