"""Which implementation of an operation runs: by argument, by environment, by rule or by the clock.

An operation offers its implementations ("backends") in order of preference. The argument `backend`
of a call decides, then the environment variable TMAPDIFF_BACKEND, for all operations ("reference")
or for some ("map_conv=direct,gate=reference"), then the first backend that can run the inputs; or,
where arithmetic cannot tell (`choose_fastest`), the one that was fastest.

Measured choices are kept in a file of the machine, so that a program makes the same choice, and
computes the same bits, whenever it runs there again: `kernels.json` in TMAPDIFF_CACHE_DIR, or else
in the user's cache folder.
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
OPERATIONS = ("map_conv", "stylization", "styled_residual", "gate", "unit_product", "ddim_step")
# Turns that are measured: at least so many, and more of what is over soon. The shortest counts, as
# others who use the machine only ever make them longer.
_REPEATS, _MOST_REPEATS = 3, 12
_SECONDS = 0.2

_measured: dict[str, str] = {}


def choose(op: str, usable: Mapping[str, str | None], backend: str | None = None) -> str:
    """Name the backend that an operation runs.

    Args:
        op: Name of the operation.
        usable: For each backend, best first: None if it can run the inputs, else why not.
        backend: The one that the caller asks for.

    Raises:
        ConfigError: If there is no backend of that name, or it cannot run the inputs.
    """
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
    """Name the backend that an operation runs: if nobody asks for one, the fastest.

    It is measured once for each key. Nothing is measured where the clock would lie or the choice
    must not depend on it: while torch traces or captures a graph, or with
    `torch.use_deterministic_algorithms`; then it is the first candidate.

    Args:
        op: Name of the operation.
        usable: As for `choose`.
        backend: The one that the caller asks for.
        candidates: Usable backends that may be the fastest, as far as arithmetic can tell, the
            likeliest first.
        key: What the speed depends on, besides the machine: sizes, dtype, whether gradients follow.
        run: Runs the operation once, with the backend of a name.
        device: Where it runs.

    Raises:
        ConfigError: As for `choose`.
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
        # One for all operations, not all of which have it.
        if backend is None or (backend not in usable and "=" not in setting):
            return None
    if backend not in usable:
        expected = f"{source} to be one of {', '.join(usable)}"
        raise ConfigError(message(f"kernels.{op}", expected, repr(backend)))
    if usable[backend]:
        expected = f"inputs that backend {backend!r} can run"
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
    """Shortest time of each backend, the backends taking turns."""
    seconds = dict.fromkeys(names, float("inf"))
    deadline = time.perf_counter() + _SECONDS
    for repeat in range(1 + _MOST_REPEATS):
        if repeat > _REPEATS and time.perf_counter() > deadline:
            break
        for name in names:
            _wait(device)
            began = time.perf_counter()
            # What is kept for gradients is kept as it is: activation checkpointing would count it.
            with torch.autograd.graph.saved_tensors_hooks(_same, _same):
                run(name)
            _wait(device)
            if repeat:  # not the first: it makes tables, and wakes the device
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name} torch {torch.__version__} tmapdiff {__version__} {_kernels_digest()}"


def _kernels_digest() -> str:
    """Name the code that is measured: a version is changed while it is developed."""
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
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home
        return {}
    found = choices.items() if isinstance(choices, dict) else ()
    return {key: name for key, name in found if isinstance(name, str)}


def _write_choices() -> None:
    try:
        with written_beside(_choices_file()) as new:
            # What another process measured meanwhile stays: its results depend on it.
            new.write_text(json.dumps({**_measured, **_read_choices()}, indent=1) + "\n")
    except (FileError, RuntimeError):
        pass  # measured again next time
