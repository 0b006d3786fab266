"""Runs of benchmarks/tables.py that are killed: they go on, and their results are the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.processes import SECONDS, start_program

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc"),
    pytest.mark.process,
    pytest.mark.train,
]
ROOT = Path(__file__).parents[2]


class Command:
    """The whole command, for a table that needs no files; two runs at a time, a thread each."""

    def __init__(self, folder: Path) -> None:
        self.results, self.scratch = folder / "results", folder / "scratch"
        options = "--table 2 --seeds 1 --epochs 2 --steps 1 --limit 12 --jobs 2 --device cpu"
        command = [sys.executable, ROOT / "benchmarks" / "tables.py", *options.split()]
        command += ["--results", self.results, "--scratch", self.scratch]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = start_program(command, **pipes)

    def end(self) -> str:
        """Wait for it; give what it printed."""
        printed, _ = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == 0, printed
        return printed

    def kill_when(self, come: Callable[[], bool]) -> dict[str, bytes]:
        """Kill it, and wait for its workers to end by themselves; give the results it leaves."""
        until = time.monotonic() + SECONDS
        while not come():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.002)
        pid = self.process.pid
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert workers
        self.process.kill()
        self.process.communicate(timeout=SECONDS)  # ends when all have closed what they print to
        assert self.process.returncode == -signal.SIGKILL
        return {path.name: path.read_bytes() for path in self.results.glob("*.json")}


def has_checkpoint(folder: Path) -> bool:
    # Unlike `rglob`, `walk` does not mind what vanishes meanwhile.
    return any(
        Path(root).name == "checkpoints" and any(name.startswith("epoch-") for name in names)
        for root, names, _ in os.walk(folder)
    )


def test_the_whole_command_goes_on_after_kills(tmp_path):
    whole = tmp_path / "whole" / "results"
    _, table = Command(whole.parent).end().split("### Table 2")
    for attempt in range(5):
        parts = tmp_path / f"parts-{attempt}"
        first = Command(parts)
        within = first.kill_when(lambda folder=first.scratch: has_checkpoint(folder))
        if has_checkpoint(first.scratch):  # else its training was over before it was killed
            break
    assert has_checkpoint(first.scratch)
    second = Command(parts)
    between = second.kill_when(lambda: len(list(second.results.glob("*.json"))) > len(within) + 1)
    assert within.items() < between.items()
    printed, resumed = Command(parts).end().split("### Table 2")
    assert resumed == table
    assert "| Rank@1 | Rank@5 | mIoU | Rank1@0.5 |" in table
    assert "6 clips, 6 durations, 1 scales" in table
    for path in (parts / "results").iterdir():
        found, expected = json.loads(path.read_text()), json.loads((whole / path.name).read_text())
        assert found["metrics"] == expected["metrics"]
    # What was complete was not made again.
    assert printed.count(" seed 0: ") == 4 - len(between)
    for name, content in between.items():
        assert (parts / "results" / name).read_bytes() == content
    assert len(list((parts / "results").glob("*.json"))) == 4
    left = (parts / "scratch" / "results").iterdir()
    assert {path.suffix for path in left} <= {".removed"}
