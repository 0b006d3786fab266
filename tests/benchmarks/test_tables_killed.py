"""Runs of benchmarks/tables.py that are killed: they go on, and their results are the same."""

import json
import random
import shutil
import signal
import sys
import time

import pytest
from helpers import crash_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
MEASURED = ("metrics", "parameters", "training", "trained_on")


def test_a_run_of_a_table_goes_on_after_kills(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    crash_run.start(crash_run.do_nothing).join(60)
    began = time.monotonic()
    process = crash_run.start(crash_run.make_table_row, whole)
    process.join(60)
    assert process.exitcode == 0
    seconds = time.monotonic() - began
    kills = 0
    while kills < 2:
        process = crash_run.start(crash_run.make_table_row, parts)
        process.join(seconds * random.random())
        process.kill()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            shutil.rmtree(parts)
    process = crash_run.start(crash_run.make_table_row, parts)
    process.join(60)
    assert process.exitcode == 0
    (first,), (second,) = ([*one.glob("results/*.json")] for one in (whole, parts))
    found, expected = json.loads(second.read_text()), json.loads(first.read_text())
    assert {name: found[name] for name in MEASURED} == {name: expected[name] for name in MEASURED}
    left = [path for path in (parts / "scratch" / "results").iterdir() if path.suffix != ".removed"]
    assert not left
