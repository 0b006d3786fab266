"""Running the command line: from arguments to an exit code."""

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from tmapdiff.errors import TmapdiffError
from tmapdiff.spinning import spin_briefly

_FAILED, _MISUSED = 1, 2
_INTERRUPTED, _TERMINATED = 130, 143  # 128 and the number of the signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `tmapdiff`, printing errors and warnings as one line each on standard error.

    Args:
        arguments: Arguments after the program's name. Defaults to those of this process.

    Returns:
        The exit code: 0 for success, 1 after an error or finding, 2 for wrong usage, 130 for an
        interrupt, 143 if a training was stopped by SIGTERM.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who started this
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    spin_briefly()
    from tmapdiff._core.checks import require

    try:
        typer: Any = require("typer", extra="cli", purpose="the command tmapdiff")
    except TmapdiffError as error:
        return _fail(error)
    from tmapdiff.cli.app import app

    # typer has no public name for the base of its usage errors.
    usage_error = typer.BadParameter.__base__
    try:
        # catch_warnings restores `showwarning`. Calling the app would replace sys.excepthook.
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = typer.main.get_command(app).main(
                args=None if arguments is None else list(arguments),
                prog_name="tmapdiff",
                standalone_mode=False,
            )
        sys.stdout.flush()
    except TmapdiffError as error:
        return _fail(error)
    except usage_error as error:
        if error.ctx is not None:
            _say(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help'.")
        _say(f"error: {error.format_message()}")
        return _MISUSED
    except OSError as error:  # of standard output
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and not isinstance(error, BrokenPipeError):
            raise
        # Python's flush at exit would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader, such as `head`, may just have closed it.
        return _fail(f"cannot write the output: {error.strerror}.") if is_full else _FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except SystemExit as stop:  # of a training that was asked to stop and has saved its state
        code = stop.code
    if code in (_INTERRUPTED, _TERMINATED):
        _say("interrupted")
    return code or 0


def printable(text: str) -> str:
    """Escape control characters, as untrusted text could send commands to the terminal."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )


def _fail(error: object) -> int:
    _say(f"error: {error}")
    return _FAILED


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def _say(text: str) -> None:
    sys.stderr.write(f"{printable(text)}\n")
