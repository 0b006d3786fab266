"""The script that compares dtypes, on a model that was never trained."""

import json

import pytest
import torch
from precision import RANKS, main

from tmapdiff import (
    PRESETS,
    ActionTimelineFeatures,
    MomentLocalizationPipeline,
    TmapdiffError,
    Vocabulary,
)
from tmapdiff.data import SyntheticActivities


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made_up = SyntheticActivities(num_videos=4)
    store = ActionTimelineFeatures(made_up.videos, num_classes=made_up.num_classes)
    vocabulary = Vocabulary.from_sentences(one.query for one in made_up.annotations)
    torch.manual_seed(0)
    model = PRESETS["nano"].build(vocabulary_size=len(vocabulary), clip_channels=store.feature_dim)
    folder = tmp_path_factory.mktemp("model")
    MomentLocalizationPipeline(model, vocabulary).save_pretrained(folder)
    return folder


def test_compares_with_float32_and_direct_convolutions(folder, tmp_path, capsys) -> None:
    output = tmp_path / "found.json"
    arguments = ["--model", str(folder), "--limit", "8", "--steps", "2", "--output", str(output)]
    main([*arguments, "--dtype", "float32", "bfloat16"])
    rows = json.loads(output.read_text())["rows"]
    assert [(row["dtype"], row["map_conv"]) for row in rows] == [
        ("float32", "direct"),
        ("float32", "spectral"),
        ("bfloat16", "direct"),
        ("bfloat16", "spectral"),
    ]
    assert rows[0]["metrics"] == pytest.approx(rows[1]["metrics"])
    assert all(0 <= row["metrics"][name] <= 100 for row in rows for name in RANKS)
    printed = capsys.readouterr().out
    assert printed.startswith("8 queries, 2 steps; features: SIMULATED")
    largest = max(abs(r["metrics"][n] - rows[0]["metrics"][n]) for r in rows for n in RANKS)
    assert f"largest difference to the first row: {largest:.2f} points" in printed


def test_wants_a_model(tmp_path) -> None:
    with pytest.raises(TmapdiffError):
        main(["--model", str(tmp_path)])
