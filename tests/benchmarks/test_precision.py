"""The script that compares dtypes, on an untrained model."""

import pytest
import torch
from precision import main

from tmapdiff import PRESETS, MomentLocalizationPipeline, TmapdiffError, Vocabulary
from tmapdiff.recipes import LocalizationData


def test_compares_with_float32_and_direct_convolutions(tmp_path, capsys):
    data = LocalizationData.make_up()
    vocabulary = Vocabulary.from_sentences(one.query for one in data.train)
    torch.manual_seed(0)
    sizes = {"vocabulary_size": len(vocabulary), "clip_channels": data.store.feature_dim}
    model = PRESETS["nano"].build(**sizes)
    MomentLocalizationPipeline(model.eval(), vocabulary).save_pretrained(tmp_path)
    arguments = ["--pipeline", str(tmp_path), "--limit", "8", "--steps", "2"]
    main([*arguments, "--dtype", "float32", "bfloat16"])
    title, _, *rows, last = capsys.readouterr().out.splitlines()
    assert title.startswith("8 queries, 2 steps; features: SIMULATED")
    found = [row.split() for row in rows]
    dtypes, ways = ("float32", "bfloat16"), ("direct", "spectral")
    assert [tuple(row[:2]) for row in found] == [(a, b) for a in dtypes for b in ways]
    ranks = torch.tensor([[float(one) for one in row[2:6]] for row in found])
    assert ranks[0].equal(ranks[1])
    assert bool(((ranks >= 0) & (ranks <= 100)).all())
    assert [row[6] for row in found[:2]] == ["100.00"] * 2
    largest = (ranks - ranks[0]).abs().max().item()
    assert last == f"largest difference to the first row: {largest:.2f} points"


def test_wants_a_pipeline(tmp_path):
    with pytest.raises(TmapdiffError):
        main(["--pipeline", str(tmp_path)])
