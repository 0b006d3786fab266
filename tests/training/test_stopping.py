import os
import signal
import subprocess
import sys
import threading

import pytest

from tmapdiff.training._stopping import SignalGuard

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")


@pytest.fixture
def came():
    """Record signals that are not caught."""
    numbers, found = (signal.SIGTERM, signal.SIGINT), []
    before = [signal.signal(one, lambda number, frame: found.append(number)) for one in numbers]
    yield found
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_a_second_has_its_effect(number, came):
    with SignalGuard() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert came == []
        os.kill(os.getpid(), number)
        assert came == [number]
    os.kill(os.getpid(), number)
    assert came == [number, number]


def test_what_a_launcher_passes_on_is_no_second_request(came):
    with SignalGuard(under_launcher=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert came == []


def test_other_threads_than_the_main_one_get_no_signals():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def train():
        with SignalGuard() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [(None, True)]


WORKER = """
import os, signal, time
from tmapdiff.training import _stopping
_stopping._SECONDS_TO_FINISH = 0.3
_stopping.ignore_signals_in_worker()
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGTERM)
print("alive", flush=True)
time.sleep(50)
"""


@pytest.mark.process
def test_workers_outlive_signals_for_a_while():
    done = subprocess.run([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, timeout=60)
    assert done.stdout == b"alive\n"
    assert done.returncode == 128 + signal.SIGTERM
