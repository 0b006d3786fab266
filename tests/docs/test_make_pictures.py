import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DRAWN = ["method", "grid", "iou-maps", "noise", "signal-scale", "denoising", "reading"]


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda folder: module.main(["--output", str(folder), "--epochs", "1", "--videos", "8"])


@pytest.mark.train
def test_pictures_are_drawn_alike_each_time(draw, tmp_path):
    for name in ("first", "second"):
        draw(tmp_path / name)
    for name in DRAWN:
        first, second = (tmp_path / run / f"{name}.png" for run in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name
    assert len(list((tmp_path / "first").iterdir())) == len(DRAWN)


def test_checked_in_pictures_show_something():
    for name in DRAWN:
        assert (DOCS / "images" / f"{name}.png").stat().st_size > 5000, name
