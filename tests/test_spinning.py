"""Spinning of threads is limited before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Runs a script or module until it imports torch, and prints the environment that torch would see.
CODE = """
import json, os, runpy, sys

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps([os.environ.get(one) for one in {variables}]), flush=True)
            os._exit(7)

sys.meta_path.insert(0, Torch())
del sys.argv[0]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__", **({{}} if run is runpy.run_path else {{"alter_sys": True}}))
"""
PROGRAMS = [["tmapdiff", "train"], ["tests/conftest.py"]]
PROGRAMS += [[str(path.relative_to(ROOT))] for path in sorted(ROOT.glob("examples/**/*.py"))]
pytestmark = pytest.mark.process


def run(code, *program, **variables):
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", code.format(variables=VARIABLES), *program]
    return subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, '["1000", null]'),
        ({"GOMP_SPINCOUNT": "77"}, '["77", null]'),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, '[null, "ACTIVE"]'),
        ({"GOMP_SPINCOUNT": "77", "OMP_WAIT_POLICY": "PASSIVE"}, '["77", "PASSIVE"]'),
    ],
)
def test_threads_of_programs_wait_for_a_moment_only_or_as_the_user_chose(chosen, found):
    for program in PROGRAMS[: 1 if chosen else None]:
        done = run(CODE, *program, **chosen)
        assert (done.returncode, done.stdout.strip()) == (7, found), (program, done.stderr)


def test_importing_the_library_chooses_nothing():
    done = run("import os, tmapdiff.spinning; print(*(one in os.environ for one in {variables}))")
    assert done.stdout == "False False\n", done.stderr
