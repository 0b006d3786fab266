import json
import sys

import postprocess
import pytest
import torch
from postprocess import WAYS, make_data, measure

from tmapdiff import MapGrid

GRID = MapGrid(16, 8, 2)


@pytest.mark.parametrize("name", WAYS)
def test_batch_and_loop_give_the_same_answers(name):
    batched, looped, _ = WAYS[name]
    data = make_data(GRID, 12)
    found, expected = batched(GRID, data), looped(GRID, data)
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    apart = expected.scores.diff(dim=1).amax(dim=1) < -1e-4
    assert int(apart.sum()) > 6
    assert torch.allclose(found.moments[apart], expected.moments[apart])


def test_rows_are_pairs_of_batch_and_loop(monkeypatch):
    monkeypatch.setattr(postprocess, "GRIDS", (MapGrid(8, 4, 2),))
    rows = measure(repeats=1, queries=60)
    names = [name for name, _ in rows]
    assert names[1::2] == [f"{name}, by a loop" for name in names[::2]]
    assert len(rows) == 2 * len(WAYS)
    assert all(seconds > 0 for _, seconds in rows)


def test_other_answers_are_not_timed(monkeypatch):
    batched, _, count = WAYS["NMS"]
    wrong = {"NMS": (batched, WAYS["expected hits"][1], count)}
    monkeypatch.setattr(postprocess, "GRIDS", (MapGrid(8, 4, 2),))
    monkeypatch.setattr(postprocess, "WAYS", wrong)
    with pytest.raises(RuntimeError, match=r"\(8, 4, 2\), NMS: the loop's answers are others"):
        measure(repeats=1, queries=60)


def test_the_script_prints_and_writes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(postprocess, "GRIDS", (MapGrid(8, 4, 2),))
    monkeypatch.setattr(postprocess, "QUERIES", 60)
    monkeypatch.setattr(postprocess, "measure", lambda repeats: measure(repeats, queries=60))
    path = tmp_path / "times.json"
    monkeypatch.setattr(sys, "argv", ["postprocess.py", "--repeats", "1", "--json", str(path)])
    postprocess.main()
    assert "(8, 4, 2), expected hits" in capsys.readouterr().out
    assert len(json.loads(path.read_text())["seconds"]) == 4
