"""Slow means that tests use, each with a marker: plain `python -m pytest` leaves such tests out.

A test that starts an interpreter, compiles or opens a browser says so by its marker, or fails. One
that forks the process of the tests fails.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

_PROGRAMS = Path(sys.executable).parent
_used: set[str] = set()


def watch_slow_means() -> None:
    """From now on, note what is slow: `slow_means` tells."""
    sys.addaudithook(_note_program)
    _note_calls(torch, "compile", lambda *_: "compile")
    _note_calls(torch.export, "export", lambda *_: "compile")
    _note_calls(BaseProcess, "start", lambda *_: "process")


def mostly_exhaustive(argument: str, values: Iterable[Any], *quick: str) -> pytest.MarkDecorator:
    """Parametrize with values, or those of a mapping; all but those of some names are slow."""
    named = values.items() if isinstance(values, Mapping) else ((str(one), one) for one in values)
    cases = [
        pytest.param(value, id=name, marks=() if name in quick else pytest.mark.exhaustive)
        for name, value in named
    ]
    return pytest.mark.parametrize(argument, cases)


def slow_means() -> set[str]:
    """Markers of what was used since the last call."""
    used = _used.copy()
    _used.clear()
    return used


def fail_if_unmarked(test: pytest.Item) -> None:
    """Fail unless a test is marked by what it, or a fixture made for it, used."""
    markers = {mark.name for mark in test.iter_markers()}
    missing = slow_means() - markers
    if "fork" in missing:
        pytest.fail(f"{test.nodeid} forks: mark it with @helpers.processes.forks", pytrace=False)
    if missing and "first_page" not in markers:
        wanted = ", ".join(f"@pytest.mark.{name}" for name in sorted(missing))
        pytest.fail(f"{test.nodeid} is slow by its nature: mark it with {wanted}", pytrace=False)


def _note_program(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        program, options = Path(str(arguments[0])), arguments[1]
        if "playwright" in program.parts:
            _used.add("browser")
        elif program.parent == _PROGRAMS and "-I" not in options:  # a small one that reads HDF5
            _used.add("process")
    elif event == "os.fork":
        _used.add("fork")


def _note_calls(owner: Any, name: str, marker: Callable[..., str]) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def noted(*arguments: Any, **options: Any) -> Any:
        _used.add(marker(*arguments[:1]))
        return function(*arguments, **options)

    setattr(owner, name, noted)
