"""Whether threads are told to wait busily for a moment only, before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Runs a script or module up to where it imports torch, and tells what torch would find.
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
EXAMPLES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/**/*.py"))


def found_by_torch(*program, **variables):
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(variables=VARIABLES), *program],
        env=environment | variables,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 7, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("program", [["tmapdiff", "train"], ["tests/conftest.py"], *zip(EXAMPLES)])
def test_threads_of_programs_wait_for_a_moment_only(program):
    assert found_by_torch(*program) == '["1000", null]'


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({"GOMP_SPINCOUNT": "77"}, '["77", null]'),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, '[null, "ACTIVE"]'),
        ({"GOMP_SPINCOUNT": "77", "OMP_WAIT_POLICY": "PASSIVE"}, '["77", "PASSIVE"]'),
    ],
)
def test_what_the_user_has_chosen_stays(chosen, found):
    assert found_by_torch("tmapdiff", "train", **chosen) == found


def test_importing_the_library_chooses_nothing():
    code = "import os, tmapdiff.spinning; print(*(name in os.environ for name in {}))"
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", code.format(VARIABLES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
