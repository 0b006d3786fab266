"""Programs and processes of tests: each ends with its test, even where that fails.

Also functions in several processes that find each other, as `torchrun` lets them.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
# Once for all processes: to import torch takes longer than what they do.
_CONTEXT.set_forkserver_preload(
    [
        "helpers.several_processes",
        "matplotlib.figure",
        "timm.optim",
        "timm.scheduler",
        "timm.utils",
        "torch.utils.tensorboard",
    ]
)
# What waits for a process waits so long: other programs may keep the machine busy.
SECONDS = 120
_STARTED: list[Any] = []


def start_process(function: Callable[..., None], *arguments: Any) -> Any:
    """Start a process that calls a function, and has imported what is needed already."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    _STARTED.append(process)
    return process


def forks(test: Callable[..., None]) -> Callable[..., None]:
    """Let a test fork: in a process of its own, where no threads hold locks. Fixtures are pickled.

    The process of the tests has threads, of torch and others: forks of it may wait for ever.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        end, told = _CONTEXT.Pipe(duplex=False)
        process = start_process(_run_in_group, told, run, arguments, fixtures)
        told.close()
        try:
            error = end.recv() if end.poll(4 * SECONDS) else "it hangs"
        except EOFError:
            process.join()
            error = f"it ended with {process.exitcode}"
        finally:
            end.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the test forked
        if error:
            pytest.fail(error, pytrace=False)

    needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    return pytest.mark.process(needs_fork(run))


def _run_in_group(told: Any, test: Any, arguments: Any, fixtures: dict[str, Any]) -> None:
    import torch

    os.setpgrp()
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    try:
        test.__wrapped__(*arguments, **fixtures)
        told.send("")
    except BaseException:
        told.send(traceback.format_exc())


def start_program(command: Sequence[str | Path], **options: Any) -> "subprocess.Popen[Any]":
    """Start a program that Ctrl-C ends, as one in the foreground of a shell."""
    # Where a shell started the tests in the background it is ignored, and programs inherit that.
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, **options)
    finally:
        if before == signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)
    _STARTED.append(process)
    return process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def end_started() -> None:
    """End all that was started and still runs, as of a test that failed."""
    while _STARTED:
        process = _STARTED.pop()
        process.kill()
        if isinstance(process, subprocess.Popen):
            with process:  # waits, and closes its pipes
                pass
        else:
            process.join()


def start_processes(
    function: Callable[..., None], count: int, logs: Path, *arguments: Any
) -> list[Any]:
    """Start a function in several processes that find each other; each has a log."""
    logs.mkdir(parents=True, exist_ok=True)
    port, running = free_port(), []
    for rank in range(count):
        variables = {"ACCELERATE_USE_CPU": "true"}
        if count > 1:
            variables |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        log = logs / f"process-{rank}.log"
        running.append(start_process(_run, function, arguments, variables, log))
    return running


def end_processes(running: list[Any], seconds: float = SECONDS) -> list[int]:
    """Wait for processes, some seconds each, kill those that still run, and give exit codes."""
    try:
        for process in running:
            process.join(seconds)
    finally:
        for process in running:
            process.kill()
            process.join()
    return [process.exitcode for process in running]


def run_processes(
    function: Callable[..., None], count: int, logs: Path, *arguments: Any, seconds: float = SECONDS
) -> str:
    """Run a function `count` times at once; returns what the first process printed.

    Fails with what all printed if one of them fails.
    """
    codes = end_processes(start_processes(function, count, logs, *arguments), seconds)
    printed = [(logs / f"process-{rank}.log").read_text() for rank in range(count)]
    assert not any(codes), f"exit codes {codes}:\n" + "\n".join(printed)
    return printed[0]


def _run(
    function: Callable[..., None], arguments: Any, variables: dict[str, str], log: Path
) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    code = 0
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            function(*arguments)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc(file=file)
            code = 1
    sys.exit(code)
