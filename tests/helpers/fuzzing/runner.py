"""Starts workers, sees to it that cases end, and gathers what became of them."""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.fuzzing.worker import SECONDS

TESTS = Path(__file__).parents[2]
# On a busy machine a case takes longer than the processor works on it.
PATIENCE = 12 * SECONDS


@dataclass(frozen=True)
class Bug:
    """A case that ended otherwise than it may."""

    target: str
    case: int
    seed: int
    kind: str
    error: str

    def __str__(self) -> str:
        again = f"python -m helpers.fuzzing.worker {self.target}:{self.case}:1 --seed {self.seed}"
        return f"{self.target} case {self.case}: {self.kind}; again with: {again}\n{self.error}"


@dataclass
class Findings:
    """What became of the cases of a target."""

    outcomes: Counter[str] = field(default_factory=Counter)  # result, refused, bug
    refusals: Counter[str] = field(default_factory=Counter)  # by the name of the error
    bugs: list[Bug] = field(default_factory=list)

    def add(self, bug: Bug) -> None:
        """Count a bug."""
        self.outcomes["bug"] += 1
        self.bugs.append(bug)


def divide(cases: int, targets: Sequence[str]) -> dict[str, int]:
    """Divide a number of cases among targets by their shares."""
    from helpers.fuzzing.targets import TARGETS

    whole = sum(TARGETS[one].share for one in targets)
    return {one: round(cases * TARGETS[one].share / whole) for one in targets}


def fuzz(
    cases: Mapping[str, int], *, first: int = 0, seed: int = 0, seconds: float = SECONDS
) -> dict[str, Findings]:
    """Run a number of cases of each target, each within some seconds of the processor's time.

    A crash or a hang ends the worker process, and another one goes on behind that case.
    """
    findings = {target: Findings() for target in cases}
    todo = [(target, first, number) for target, number in cases.items() if number]
    while todo:
        todo = _run_worker(findings, todo, seed, seconds)
    return findings


def _run_worker(
    findings: dict[str, Findings], todo: list[tuple[str, int, int]], seed: int, seconds: float
) -> list[tuple[str, int, int]]:
    """Run cases until the worker ends; return those that are left."""
    command = [sys.executable, "-m", "helpers.fuzzing.worker", "--seed", str(seed)]
    command += ["--seconds", str(seconds)]
    command += [":".join(map(str, one)) for one in todo]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    # Arenas of many threads would count as memory that a case takes.
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "2"}
    running: tuple[str, int] | None = None
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=words, env=environment, cwd=TESTS
        )
        kind = "crash"
        try:
            for line in _lines(process):
                target, case = running = line["target"], line["case"]
                if "outcome" not in line:
                    continue
                if line["outcome"] == "bug":
                    findings[target].add(Bug(target, case, seed, line["kind"], line["error"]))
                else:
                    findings[target].outcomes[line["outcome"]] += 1
                if line["outcome"] == "refused":
                    findings[target].refusals[line["error"]] += 1
        except TimeoutError:
            kind = "hang"
        finally:
            process.kill()
            code = process.wait()
            process.stdout.close()
        words.seek(0)
        said = words.read()[-3000:]
    if code == 0:
        return []
    if running is None:
        raise RuntimeError(f"the worker did not start: {said}")
    target, case = running
    findings[target].add(Bug(target, case, seed, kind, f"exit code {code}\n{said}"))
    place = [one for one, _, _ in todo].index(target)
    _, first, number = todo[place]
    left = (target, case + 1, first + number - case - 1)
    return [*([left] if left[2] else []), *todo[place + 1 :]]


def _lines(process: subprocess.Popen) -> Iterator[dict]:
    """Give the lines that a worker prints; raise TimeoutError when none comes for long."""
    rest = b""
    while True:
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            raise TimeoutError
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(json.loads, lines)
