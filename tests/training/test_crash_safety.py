"""Real runs that are killed or stopped. TMAPDIFF_KILLS=20 is the long test."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import crash_run
from helpers.processes import SECONDS

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")]
KILLS = int(os.environ.get("TMAPDIFF_KILLS", "3"))
# One per step, so that about half of the kills come while one is written.
OFTEN = {"checkpoint_steps": 1, "num_workers": 1}


def wait(process, seconds: float = SECONDS) -> int:
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def finished(folder: Path) -> dict:
    return json.loads((folder / "result-0.json").read_text())


def wait_for(file: Path, process, seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not file.exists():
        assert process.is_alive(), f"ended with {process.exitcode}"
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict, float]:
    """Result of an uninterrupted run, and its duration in seconds."""
    folder = tmp_path_factory.mktemp("whole")
    wait(crash_run.start(crash_run.do_nothing))
    began = time.monotonic()
    # Checkpoints within epochs and workers do not change the result.
    assert wait(crash_run.start(crash_run.train, folder, {})) == 0
    return finished(folder), time.monotonic() - began


def test_runs_that_are_killed_end_as_if_they_were_not(whole, tmp_path):
    expected, seconds = whole
    moments = random.Random(os.environ.get("TMAPDIFF_KILL_SEED"))
    kills = while_writing = runs = 0
    folder = tmp_path / "run0"
    while kills < KILLS or not (folder / "result-0.json").exists():
        if (folder / "result-0.json").exists():
            assert finished(folder) == expected
            runs += 1
            folder = tmp_path / f"run{runs}"
        process = crash_run.start(crash_run.train, folder, OFTEN)
        if kills < KILLS:
            process.join(1.5 * seconds * moments.random())
            if kills % 3 == 2:
                wait_for_write(folder / "checkpoints", process)
            process.kill()
        code = wait(process)
        assert code in (0, -signal.SIGKILL), f"it did not continue after {kills} kills"
        if code:
            kills += 1
            while_writing += any((folder / "checkpoints").glob(".epoch-*"))
        assert len(list((folder / "checkpoints").glob("epoch-*"))) <= 4
    assert finished(folder) == expected
    print(f"{kills} kills of {runs + 1} runs, {while_writing} while a checkpoint was written")
    assert while_writing


def wait_for_write(folder: Path, process) -> None:
    while process.is_alive() and not any(folder.glob(".epoch-*/epoch-*/*")):
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends(whole, tmp_path, number, code):
    process = crash_run.start(crash_run.train_slowly, tmp_path, {"num_workers": 1}, 0.2)
    wait_for(tmp_path / "started-0", process)
    # A terminal also signals the workers.
    os.kill(process.pid, number)
    for worker in children(process.pid):
        os.kill(worker, number)
    assert wait(process) == code
    (saved,) = (tmp_path / "checkpoints").glob("epoch-*")
    assert saved.name.startswith("epoch-0000-step-")
    assert wait(crash_run.start(crash_run.train, tmp_path, {})) == 0
    assert finished(tmp_path) == whole[0]


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # not Linux
        return []


def test_a_second_signal_does_not_wait(tmp_path):
    process = crash_run.start(crash_run.train_slowly, tmp_path, {}, 20.0)
    wait_for(tmp_path / ".lock", process)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.1)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    assert wait(process, 15) != 0
    assert not list((tmp_path / "checkpoints").glob("epoch-*"))


def test_two_processes_in_one_folder_are_refused(tmp_path):
    first = crash_run.start(crash_run.train_slowly, tmp_path, {}, 600.0)
    wait_for(tmp_path / "training.json", first)  # written while holding the lock
    second = crash_run.start(crash_run.train_and_report, tmp_path, {})
    assert wait(second) == 0
    first.kill()
    wait(first)
    error = (tmp_path / "error").read_text()
    assert error == (
        f"FileError: Trainer: expected no other process that trains in {tmp_path}, got one."
    )
    # A killed run releases the lock.
    assert wait(crash_run.start(crash_run.train, tmp_path, {"epochs": 1}, False)) == 0
