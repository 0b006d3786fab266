import json
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from helpers.assertions import refuses
from helpers.pipelines import make_localizer, make_pipe
from torch.torch_version import TorchVersion

from tmapdiff import ConfigError, MapScheduler, MomentLocalizer, SimilarityLocalizer
from tmapdiff.export import export_pipeline

from .conftest import KINDS, LENGTH, inputs_of


@pytest.fixture(scope="module")
def exported(pipes, tmp_path_factory):
    @cache
    def export(kind):
        folder = tmp_path_factory.mktemp(kind)
        export_pipeline(pipes[kind], folder, max_words=LENGTH)
        return folder

    return export


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7])
def test_graphs_of_any_batch_give_the_models_maps(exported, pipes, kind, batch):
    folder, model, given = exported(kind), pipes[kind].localizer, inputs_of(pipes[kind], batch)
    graphs = {
        name: torch.export.load(folder / f"{name}.pt2").module()
        for name in json.loads((folder / "export.json").read_text())["graphs"]
    }
    if "localizer" in graphs:
        found = graphs["localizer"](*given)
        assert (found - model.predict_maps(*given)).abs().max() < 1e-4
        assert found.abs().max() > 0.01
        return
    with torch.no_grad():
        features = model.encoder(*given)
        for one, other in zip(graphs["encoder"](*given), features, strict=True):
            assert (one - other).abs().max() < 1e-4
        noisy = torch.randn(batch, model.grid.num_cells)
        timesteps = torch.randint(0, 1000, (batch,))
        scores = model.decoder(noisy, timesteps, features, given[3])
        maps = graphs["decoder"](noisy, timesteps, given[3], *features)
        assert (maps - model.objective.activation(scores)).abs().max() < 1e-4
        assert maps.std() > 0.01


@pytest.mark.compile
@pytest.mark.process
def test_graphs_load_without_this_library(exported, tmp_path):
    from helpers.processes import start_program

    code = (
        "import sys, torch; sys.modules['tmapdiff'] = None\n"
        "run = torch.export.load(sys.argv[1]).module()\n"
        "maps = run(torch.randn(2, 8, 6), torch.randn(2, 4, 6), torch.tensor([1, 4]),"
        " torch.tensor([8, 5]))\n"
        "open(sys.argv[2], 'w').write(str(list(maps.shape)))"
    )
    file, said = exported("similarity") / "localizer.pt2", tmp_path / "said"
    program = start_program([sys.executable, "-c", code, str(file), str(said)], cwd=tmp_path)
    assert program.wait() == 0
    assert said.read_text() == "[2, 48]"


@pytest.mark.compile
def test_a_second_export_replaces_the_files_of_the_first(exported, pipes):
    folder = exported("conv")
    (folder / "mine.txt").write_text("stays")
    report = export_pipeline(pipes["conv"], folder, max_words=LENGTH, num_inference_steps=1)
    assert {*report.sizes, "mine.txt"} == {file.name for file in folder.iterdir()}
    assert "equal to the model to" in str(report)
    info = json.loads((folder / "export.json").read_text())
    assert info["scheduler"]["timesteps"] == [999]
    assert len(info["scheduler"]["coefficients"]) == 1


def test_models_that_cannot_be_exported_are_refused(tmp_path, monkeypatch):
    pipe = make_pipe()
    with monkeypatch.context() as older, refuses(ConfigError, "expected torch 2.8 or later"):
        older.setattr("torch.__version__", TorchVersion("2.7.1"))
        export_pipeline(pipe, tmp_path / "a")
    pipe.scheduler = MapScheduler(solver="unipc")
    with refuses(ConfigError, "expected a scheduler with solver ddim", "solver='ddim'"):
        export_pipeline(pipe, tmp_path / "a")
    with refuses(ConfigError, "format to be one of pt2, onnx"):
        export_pipeline(pipe, tmp_path / "a", format="tflite")
    large = SimilarityLocalizer(4, 128, 128, 1)
    config = SimpleNamespace(fps=1.0, clip_seconds=None, durations=None)
    other = SimpleNamespace(localizer=large, vocabulary=None, config=config)
    with refuses(ConfigError, "a grid of at most 4,096 moments", "got 8,256", "num_anchors"):
        export_pipeline(other, tmp_path / "a")
    fixed = make_pipe(make_localizer(MomentLocalizer, deterministic=True))
    with refuses(ConfigError, "one step, as the model is deterministic"):
        export_pipeline(fixed, tmp_path / "a", num_inference_steps=2)
    assert not (tmp_path / "a").exists()


@pytest.mark.compile
def test_results_that_are_not_numbers_are_refused(tmp_path):
    pipe = make_pipe()
    pipe.localizer.decoder.decoders[0].head.bias.data.fill_(torch.nan)
    with refuses(ConfigError, "graphs with the model's results", "a difference of nan"):
        export_pipeline(pipe, tmp_path / "a")
