import pytest
import torch
from helpers.pipelines import make_localizer, make_pipe

from tmapdiff import MS2DTAN


@pytest.mark.compile
def test_writes_graphs_and_says_how_large_they_are(passes, tmp_path):
    make_pipe(make_localizer(MS2DTAN)).save_pretrained(tmp_path / "pipe")
    found = passes("export", tmp_path / "pipe", "--max-words", 3, "--json").document
    assert found["folder"] == str(tmp_path / "pipe-pt2")
    assert set(found["sizes"]) == {"export.json", "localizer.pt2", "vocabulary.json"}
    assert 0 <= found["difference"] < 1e-4
    run = torch.export.load(tmp_path / "pipe-pt2" / "localizer.pt2").module()
    words, num_words = torch.tensor([[2, 3, 0]] * 2), torch.tensor([2, 1])
    assert run(torch.randn(2, 8, 96), words, num_words, torch.tensor([8, 5])).shape == (2, 48)


def test_what_cannot_be_exported_is_one_line(refused, tmp_path):
    make_pipe(make_localizer(MS2DTAN)).save_pretrained(tmp_path / "pipe")
    error = refused("export", tmp_path / "pipe", "--steps", 2, "--json")
    assert error.startswith("export_pipeline: expected one pass for a model that is not generative")
