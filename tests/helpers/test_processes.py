"""Programs of tests: as a shell starts them, and gone when the test is."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from helpers.processes import end_started, start_program

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
    _, error = process.communicate(timeout=30)
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
