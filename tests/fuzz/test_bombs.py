"""Small files that declare more than a machine has are refused before the memory is taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fuzzing.bombs import BOMBS, LIMIT

pytestmark = pytest.mark.process

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outcomes():
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "helpers.fuzzing.bombs"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_take_no_memory(outcomes, bomb):
    kind, text, taken = outcomes[bomb]
    kinds = ("SizeLimitError", "ConfigError", "CheckpointError", "ArgumentError")
    if bomb.startswith("video"):
        kinds = ("VideoError",)
    if bomb == "hdf5_chunk_packed_twice":
        kinds = ("FeatureError",)
    assert kind in kinds, text
    assert len(text.splitlines()) == 1
    # Each would take more than the limit.
    assert taken < LIMIT / 3
