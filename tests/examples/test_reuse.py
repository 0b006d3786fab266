"""Components outside video: each example learns its task within seconds."""

import ast
import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "reuse"
SCRIPTS = sorted(FOLDER.glob("*.py"))
# Training steps, the metric, and its least multiple of chance. Full runs
# reach 99.8, 53 and 100 percent; chance is 26, 25 and 1.
QUICK = {
    "audio_moments": (80, "Rank1@0.5", 1.5),
    "action_proposals": (100, "AR@3", 1.6),
    "text_spans": (120, "Rank1@0.99", 5.0),
}


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.train
@pytest.mark.parametrize("name", QUICK)
def test_it_learns_what_chance_does_not_know(name, capsys):
    steps, metric, times = QUICK[name]
    results = load(name).main(["--steps", str(steps)])
    assert results["diffusion"][metric] > times * results["chance"][metric]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["diffusion", "chance"]
    assert f"{metric} {results['diffusion'][metric]:.1f}" in lines[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_one_short_file_that_uses_the_library_only(script):
    assert script.stem in QUICK
    text = script.read_text()
    assert len(text.splitlines()) < 80
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            packages = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            packages = [node.module.split(".")[0]]
        else:
            continue
        assert set(packages) <= {"argparse", "torch", "tmapdiff"}
    assert callable(load(script.stem).main)
