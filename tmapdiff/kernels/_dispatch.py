"""Choice of an operation's backend (implementation): by argument, environment variable, or speed.

Measured choices are stored per machine, so that a program computes the same bits in every run.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tmapdiff._core.checks import message
from tmapdiff._core.files import written_beside
from tmapdiff._version import __version__
from tmapdiff.errors import ConfigError, FileError

BACKEND_VARIABLE = "TMAPDIFF_BACKEND"
CACHE_VARIABLE = "TMAPDIFF_CACHE_DIR"
OPERATIONS = ("map_conv", "stylization", "styled_residual", "gate")
# Timed runs: at least this many, and more if they are short. The shortest counts, as other load on
# the machine only ever makes runs longer.
_REPEATS, _MOST_REPEATS = 3, 12
_SECONDS = 0.2

_measured: dict[str, str] = {}


def choose(op: str, usable: Mapping[str, str | None], backend: str | None = None) -> str:
    """Return the backend to run; `usable` maps each, best first, to why it cannot run, or None."""
    return _asked_for(op, usable, backend) or next(name for name in usable if not usable[name])


def choose_fastest(
    op: str,
    usable: Mapping[str, str | None],
    backend: str | None,
    *,
    candidates: Sequence[str],
    key: str,
    run: Callable[[str], Any],
    device: torch.device,
) -> str:
    """Return the fastest of the usable `candidates`, likeliest first, unless one is requested.

    Speed is measured once per machine and `key`: sizes, dtype, whether gradients follow. The first
    candidate is used without measuring where timing is unreliable or must not matter: while torch
    traces or captures a graph, and with `torch.use_deterministic_algorithms`.
    """
    asked = _asked_for(op, usable, backend)
    no_clock = torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled()
    if asked or len(candidates) == 1 or no_clock:
        return asked or candidates[0]
    known = f"{op} {_machine(device)} {key} {'/'.join(sorted(candidates))}"
    if known not in _measured:
        _measured.update(_read_choices())
    if _measured.get(known) not in candidates:
        if not _may_measure(device):
            return candidates[0]
        seconds = _measure(candidates, run, device)
        _measured[known] = min(seconds, key=seconds.__getitem__)
        _write_choices()
    return _measured[known]


def _asked_for(op: str, usable: Mapping[str, str | None], backend: str | None) -> str | None:
    source = "backend"
    if backend is None:
        setting = os.environ.get(BACKEND_VARIABLE, "")
        named = _parsed(setting) if setting else {}
        source, backend = BACKEND_VARIABLE, named.get(op, named.get(""))
        # A name for all operations is ignored by those without such a backend.
        if backend is None or (backend not in usable and "=" not in setting):
            return None
    if backend not in usable:
        expected = f"{source} to be one of {', '.join(usable)}"
        raise ConfigError(message(f"kernels.{op}", expected, repr(backend)))
    if usable[backend]:
        expected = f"inputs that backend {backend!r} supports"
        raise ConfigError(message(f"kernels.{op}", expected, f"others: {usable[backend]}"))
    return backend


@cache
def _parsed(setting: str) -> dict[str, str]:
    named = {}
    for part in filter(None, (one.strip() for one in setting.split(","))):
        op, equals, backend = (piece.strip() for piece in part.partition("="))
        if equals and not (op and backend):
            expected = f"{BACKEND_VARIABLE} like 'reference' or 'gate=reference,map_conv=direct'"
            raise ConfigError(message("kernels", expected, repr(setting)))
        if equals and op not in OPERATIONS:
            expected = f"{BACKEND_VARIABLE} to name one of {', '.join(OPERATIONS)}"
            raise ConfigError(message("kernels", expected, repr(op)))
        named[op if equals else ""] = backend if equals else op
    return named


def _may_measure(device: torch.device) -> bool:
    return device.type == "cpu" or (
        device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    )


def _measure(
    names: Sequence[str], run: Callable[[str], Any], device: torch.device
) -> dict[str, float]:
    """Return the shortest time of each backend; backends take turns."""
    seconds = dict.fromkeys(names, float("inf"))
    deadline = time.perf_counter() + _SECONDS
    for repeat in range(1 + _MOST_REPEATS):
        if repeat > _REPEATS and time.perf_counter() > deadline:
            break
        for name in names:
            _wait(device)
            began = time.perf_counter()
            # Disable outer hooks on saved tensors: activation checkpointing would count them.
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                run(name)
            _wait(device)
            if repeat:  # the first is a warm-up
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name} torch {torch.__version__} tmapdiff {__version__} {_kernels_digest()}"


def _kernels_digest() -> str:
    """Identify the measured code, which may change within a version during development."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.partition(":")[2].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        import platform

        model = platform.processor() or platform.machine()
    return f"{model} x {torch.get_num_threads()}"


def _choices_file() -> Path:
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder) / "kernels.json"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tmapdiff" / "kernels.json"


def _read_choices() -> dict[str, str]:
    try:
        choices = json.loads(_choices_file().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    found = choices.items() if isinstance(choices, dict) else ()
    return {key: name for key, name in found if isinstance(name, str)}


def _write_choices() -> None:
    try:
        with written_beside(_choices_file()) as new:
            # Another process's choices take precedence, as its results depend on them.
            new.write_text(json.dumps({**_measured, **_read_choices()}, indent=1) + "\n")
    except (FileError, RuntimeError):
        pass  # measured again next time
