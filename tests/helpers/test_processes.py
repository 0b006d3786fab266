"""Programs of tests: as a shell starts them, and gone when the test is."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.processes import SECONDS, end_started, forks, start_program

pytestmark = pytest.mark.process
FOREVER = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]


@pytest.fixture
def in_the_background() -> Iterator[None]:
    """What a shell does for what it starts with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_background")
def test_ctrl_c_ends_programs_of_tests_that_run_in_the_background() -> None:
    process = start_program(FOREVER, stdout=-1, stderr=-1)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=SECONDS)
    assert b"KeyboardInterrupt" in error
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "that of the tests is as before"


def test_what_a_failed_test_leaves_is_ended(request: pytest.FixtureRequest) -> None:
    program = start_program(FOREVER, stdout=-1)
    program.stdout.readline()
    end_started()
    assert program.returncode == -signal.SIGKILL
    assert program.stdout.closed
    with pytest.raises(ProcessLookupError):
        os.kill(program.pid, 0)
    assert "_no_process_is_left" in request.fixturenames, "which calls it after each test"


@forks
def test_a_process_that_may_fork_has_one_thread() -> None:
    torch.ones(1000, 1000).sum()
    assert multiprocessing.get_start_method() == "fork"
    assert len(os.listdir("/proc/self/task")) == 1


@forks
def _fails() -> None:
    process = multiprocessing.Process(target=time.sleep, args=(SECONDS,))
    process.start()
    raise ValueError(f"left: {process.pid}.")


@forks
def _dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_fails_in_a_process_that_may_fork_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="ValueError: left") as failed:
        _fails()
    command = Path("/proc", str(failed.value).split()[-1].rstrip("."), "cmdline")
    while command.exists() and command.read_bytes():  # a process that ended has none
        time.sleep(0.05)
    with pytest.raises(pytest.fail.Exception, match="it ended with -9"):
        _dies()
