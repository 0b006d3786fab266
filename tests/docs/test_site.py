import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_shapes_and_sources_become_what_griffe_renders():
    rewritten = runpy.run_path(str(ROOT / "docs" / "_site" / "docstrings.py"))["rewritten"]
    docstring = (
        "What it is.\n\nArgs:\n    x: Features.\n\nShape:\n    - x, y: (B, 3)\n"
        "    - returns: (B,), and\n      more\n\nRaises:\n    ShapeError: If not.\n\n"
        "Source: Ho et al., arXiv 2006.11239, and\n    others, doi 10.1364/JOSA.62.000055.\n\n"
        "Example:\n    >>> 1\n    1\n"
    )
    assert rewritten(docstring) == (
        "What it is.\n\nArgs:\n    x: Features.\n\n**Shape**\n\n- `x`, `y`: (B, 3)\n"
        "- `returns`: (B,), and\n  more\n\nRaises:\n    ShapeError: If not.\n\n"
        "**Source**\n\nHo et al., [arXiv 2006.11239](https://arxiv.org/abs/2006.11239), "
        "and others, "
        "[doi 10.1364/JOSA.62.000055](https://doi.org/10.1364/JOSA.62.000055).\n\n"
        "Examples:\n    >>> 1\n    1\n"
    )


@pytest.mark.process
def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in ("index", "method", "guides/your-data", "api/index", "api/maps/grid"):
        assert (tmp_path / f"{page}.html").is_file(), page
    grid = (tmp_path / "api/maps/grid.html").read_text()
    assert "https://arxiv.org/abs/2012.02646" in grid
    assert "Shape:" not in grid.split("<details")[0]
    overrides = (tmp_path / "api/models/localizer.html").read_text()
    assert 'id="tmapdiff.models.localizer.MomentLocalizer.predict_maps"' in overrides
