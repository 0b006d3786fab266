"""Small files that declare more than a machine has are refused before the memory is taken."""

import json
import subprocess
import sys

import pytest
from helpers.fuzzing.bombs import BOMBS, LIMIT

KINDS = ("SizeLimitError", "ConfigError", "CheckpointError", "ArgumentError")


@pytest.mark.process
def test_bombs_take_no_memory():
    command = [sys.executable, "-m", "helpers.fuzzing.bombs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in outcomes] == list(BOMBS)
    for name, kind, text, taken in outcomes:
        kinds = ("VideoError",) if name.startswith("video") else KINDS
        assert kind in kinds, name
        assert len(text.splitlines()) == 1, name
        # Each would take more than the limit.
        assert taken < LIMIT / 3, name
