import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from helpers.assertions import refuses

from tmapdiff.errors import ArgumentError
from tmapdiff.models import MS2DTAN, MomentLocalizer

SCRIPT = Path(__file__).parents[2] / "examples" / "train_didemo.py"
QUICK = ["--epochs", "1", "--device", "cpu", "--preset", "nano"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_didemo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _separate_runs() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def didemo(tmp_path) -> Path:
    """A folder in the form of DiDeMo, with features as in average_fc7.h5."""
    root = tmp_path / "didemo"
    root.mkdir()
    random = np.random.default_rng(0)
    with h5py.File(root / "average_fc7.h5", "w") as file:
        for split in ("train", "test"):
            records = []
            for number in range(4):
                segments = 6 - number % 2
                features = random.standard_normal((6, 10))
                features[segments:] = 0
                video = f"{number}@N01_{split}.mov"
                file[video] = features
                records.append(
                    {
                        "annotation_id": number,
                        "video": video,
                        "description": "a dog runs.",
                        "times": [[1, 1], [1, 1], [0, 1], [segments - 1, segments - 1]],
                        "num_segments": segments,
                    }
                )
            (root / f"{split}_data.json").write_text(json.dumps(records))
    return root


def test_made_up_data(example, tmp_path, capsys):
    example.main([*QUICK, "--limit", "40", "--output", str(tmp_path)])
    summary = json.loads((tmp_path / "metrics.json").read_text())
    names = {"Rank@1", "Rank@5", "mIoU", "Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7"}
    assert names <= summary.keys()
    assert summary["prior"].keys() == {"Rank@1", "Rank@5", "mIoU"}
    printed = capsys.readouterr().out
    assert "SIMULATED" in printed
    assert f"mIoU       {summary['mIoU']:>13.2f} {summary['prior']['mIoU']:>7.2f}" in printed
    model = MomentLocalizer.from_pretrained(tmp_path / "model")
    assert int(model.grid.packed_mask().sum()) == 21


@pytest.mark.parametrize(
    ("model", "kind"), [("ms2dtan", MS2DTAN), ("deterministic", MomentLocalizer)]
)
def test_files_of_didemo(example, didemo, tmp_path, model, kind):
    features = ["--root", str(didemo), "--features", str(didemo / "average_fc7.h5")]
    example.main([*QUICK, *features, "--model", model, "--output", str(tmp_path / "run")])
    rows = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    windows = [json.loads(row)["pred_relevant_windows"] for row in rows]
    # Videos of five segments end at 25 seconds.
    assert max(end for one in windows[::2] for _, end, _ in one) <= 30
    assert max(end for one in windows[1::2] for _, end, _ in one) <= 25
    kind.from_pretrained(tmp_path / "run" / "model")


def test_features_are_needed(example, didemo):
    with refuses(ArgumentError, "train_didemo: expected --features with --root, got none."):
        example.main([*QUICK, "--root", str(didemo)])
