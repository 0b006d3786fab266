"""Seconds until the library is there, in a new process each time."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from speed_cases import Candidate, Case, Contest, TimedCase
from timing import Effort

import tmapdiff
from speed_suites.setting import Setting

STATEMENTS = (
    "import torch",
    "import diffusers",
    "import tmapdiff",
    "from tmapdiff import MapDiffusionDecoder",
)
_TIMED = """
from time import perf_counter
began = perf_counter()
{}
print(perf_counter() - began)
"""


def cases(setting: Setting) -> Iterator[Case]:
    """Measure our imports beside those of what we build on."""
    effort = Effort(rounds=1, seconds=0, warm_up=0) if setting.quick else Effort(seconds=10)
    yield TimedCase(
        "import",
        "import",
        {},
        torch.float32,
        lambda: Contest(
            [Candidate(one, seconds_of, [one], times_itself=True) for one in STATEMENTS]
        ),
        reference=STATEMENTS[0],
        effort=effort,
    )


def seconds_of(statement: str) -> float:
    """Run a statement in a new process, and tell how long it took there."""
    code = [sys.executable, "-c", _TIMED.format(statement)]
    ours = Path(tmapdiff.__file__).parents[1]  # where `-c` imports from
    run = subprocess.run(code, cwd=ours, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{statement}: {run.stderr.strip().splitlines()[-1]}")
    return float(run.stdout)
