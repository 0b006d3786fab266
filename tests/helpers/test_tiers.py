"""Tests that use slow means without saying so fail."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_marked_test_runs_once_in_ci() -> None:
    pyproject, ci = (ROOT / "pyproject.toml").read_text(), (ROOT / ".ci" / "run").read_text()
    markers = re.findall(r'^    "(\w+): ', pyproject.split("markers = [")[1], re.MULTILINE)
    assert len(markers) == 7
    assert f"-m 'not ({' or '.join(markers)})'" in pyproject
    markers.remove("first_page")
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    for commands in (ci, workflow):
        assert f'-m "{" or ".join(markers)}"' in commands
    assert "pytest -m first_page" in ci
