"""Tests that use slow means without saying so fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiers import fail_if_unmarked

ROOT = Path(__file__).parents[2]


def test_a_test_without_its_marker_fails(request: pytest.FixtureRequest) -> None:
    start = [sys.executable, "-c", ""]
    subprocess.run(start, check=True)
    with pytest.raises(pytest.fail.Exception, match=r"mark it with @pytest\.mark\.process$"):
        fail_if_unmarked(request.node)
    request.node.add_marker("process")
    subprocess.run(start, check=True)
    fail_if_unmarked(request.node)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_test_that_forks_the_tests_fails(request: pytest.FixtureRequest) -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(pytest.fail.Exception, match=r"forks: mark it with @helpers\.processes"):
        fail_if_unmarked(request.node)


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
