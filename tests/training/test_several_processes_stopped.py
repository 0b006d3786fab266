"""Several processes of one training, of which all or one are signaled or killed."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.crash_run import train, train_slowly
from helpers.processes import end_processes, run_processes, start_processes
from helpers.several_processes import train_apart

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform == "win32", reason="no such signals"),
]
RUN = {"batch_size": 8, "epochs": 2}
SECONDS = 60  # much longer than any exit takes, but less than waiting forever


def finish(folder: Path) -> list[dict]:
    run_processes(train, 2, folder / "logs", folder, RUN)
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict]:
    """Result of two uninterrupted processes."""
    first, second = finished = finish(tmp_path_factory.mktemp("whole"))
    assert first["weights"] == second["weights"]
    assert first["random"] != second["random"]
    return finished


def start_slowly(folder: Path, **changes) -> list:
    """Start two processes and wait until both are in the middle of an epoch."""
    running = start_processes(train_slowly, 2, folder / "logs", folder, {**RUN, **changes})
    until = time.monotonic() + SECONDS
    while not all((folder / f"started-{rank}").exists() for rank in range(2)):
        assert all(process.is_alive() for process in running), printed(folder)
        assert time.monotonic() < until, printed(folder)
        time.sleep(0.01)
    return running


def printed(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "logs").iterdir()))


@pytest.mark.parametrize(
    ("number", "ranks", "code"),
    [
        pytest.param(signal.SIGTERM, [0], 143, id="SIGTERM to the first"),
        pytest.param(signal.SIGINT, [1], 130, id="SIGINT to the second"),
        # A scheduler signals all processes, and the launcher repeats its signal.
        pytest.param(signal.SIGTERM, [0, 1, 0, 1], 143, id="SIGTERM to both, twice"),
    ],
)
def test_a_signal_to_any_stops_all_at_one_step(whole, tmp_path, number, ranks, code):
    running = start_slowly(tmp_path)
    for rank in ranks:
        os.kill(running[rank].pid, number)
        time.sleep(0.02)  # otherwise, two signals to one process would merge
    assert end_processes(running, SECONDS) == [code, code], printed(tmp_path)
    (saved,) = (tmp_path / "checkpoints").glob("epoch-*")
    assert saved.name.startswith("epoch-0000-step-")
    assert finish(tmp_path) == whole


@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_do_not_wait_for_one_that_is_killed(whole, tmp_path, killed):
    running = start_slowly(tmp_path, checkpoint_steps=1)
    running[killed].kill()
    codes = end_processes(running, SECONDS)
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1, printed(tmp_path)
    assert list((tmp_path / "checkpoints").glob("epoch-*"))
    assert finish(tmp_path) == whole


def test_processes_that_resume_from_different_places_are_refused(tmp_path):
    changes = {**RUN, "epochs": 1}
    run_processes(train, 2, tmp_path / "logs", tmp_path, changes)
    run_processes(train_apart, 2, tmp_path / "logs", tmp_path, changes)
    steps = json.loads((tmp_path / "result-0.json").read_text())["step"]
    for rank in range(2):
        assert (tmp_path / f"error-{rank}").read_text() == (
            "Trainer: expected all processes to resume from the same checkpoint, got "
            f"[epoch, step] [[1, {steps}], [0, 0]]. All machines must share {tmp_path}."
        )
