"""A test that forks fails where it fails."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from helpers.processes import SECONDS, forks

pytestmark = pytest.mark.process


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
