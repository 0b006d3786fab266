import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DRAWN = ["method", "grid", "iou-maps", "noise", "signal-scale", "denoising", "reading"]


@pytest.mark.train
def test_pictures_are_drawn_alike_each_time(tmp_path):
    draw = runpy.run_path(str(DOCS / "make_pictures.py"))["main"]
    for name in ("first", "second"):
        draw(["--output", str(tmp_path / name), "--epochs", "1", "--videos", "8"])
    for name in DRAWN:
        first, second = (tmp_path / run / f"{name}.png" for run in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), name
    assert len(list((tmp_path / "first").iterdir())) == len(DRAWN)


def test_checked_in_pictures_show_something():
    for name in DRAWN:
        assert (DOCS / "images" / f"{name}.png").stat().st_size > 5000, name
