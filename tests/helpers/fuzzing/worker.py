"""Runs fuzz cases in a process of its own, with bounds on memory and time, and tells of each.

    python -m helpers.fuzzing.worker npy:0:100 npz:7:1 --seed 0

Case n of a target is the same for one seed, wherever and after whatever it runs.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from pathlib import Path

MEGABYTE = 2**20
# What a case may use beside what the process has before it; the target says what it may reserve.
MEMORY = 768 * MEGABYTE
SECONDS = 10  # of the processor's time
# What one item may declare: small, so that the bound on memory shows who does not check it.
ITEM_BYTES = 64 * MEGABYTE

_output = 1


class TimeIsUpError(BaseException):
    """A case took longer than it may; no `except Exception` stops it."""


def main() -> None:
    """Run the cases that the command line asks for; print a line of JSON before and after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+", help="target:first:number, such as npy:0:100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the processor, a case")
    parser.add_argument("--keep", type=Path, help="folder to leave the damaged files in")
    arguments = parser.parse_args()

    # What libraries print goes elsewhere.
    global _output
    _output = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    signal.signal(signal.SIGPROF, _time_is_up)
    os.environ["TMAPDIFF_MAX_ITEM_BYTES"] = str(ITEM_BYTES)
    import torch

    torch.set_num_threads(1)
    from helpers.fuzzing.targets import SELF_TEST, TARGETS

    for cases in arguments.cases:
        name, first, number = cases.split(":")
        target = SELF_TEST if name == SELF_TEST.name else TARGETS[name]
        _run(target, range(int(first), int(first) + int(number)), arguments)


def _run(target, numbers: range, arguments: argparse.Namespace) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with tempfile.TemporaryDirectory() as scratch:
        seeds = target.seeds(Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        # What is not damaged must be read; this also imports what is imported late.
        for index, seed in enumerate(seeds):
            target.check(_written(seed, Path(scratch) / f"seed-{index}"))
    resource.setrlimit(resource.RLIMIT_AS, (_virtual_memory() + target.megabytes * MEGABYTE, most))
    for number in numbers:
        _say({"target": target.name, "case": number})
        with tempfile.TemporaryDirectory() as scratch:
            draw = random.Random(f"{arguments.seed}/{target.name}/{number}")
            folder = _written(target.damaged(seeds, draw, number), Path(scratch) / "case")
            if arguments.keep:
                shutil.copytree(folder, arguments.keep / f"{target.name}-{number}")
            before = peak_memory()
            outcome = _outcome(target, folder, arguments.seconds)
            used = peak_memory() - before
            if used > MEMORY and outcome["outcome"] != "bug":
                outcome = {"outcome": "bug", "kind": "memory", "error": f"{used:,} bytes used"}
        _say({"target": target.name, "case": number, **outcome})


def _outcome(target, folder: Path, seconds: float) -> dict[str, str]:
    from tmapdiff.errors import TmapdiffError

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            target.check(folder)
        return {"outcome": "result"}
    except TmapdiffError as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return _refusal(error)
    except TimeIsUpError:
        return {"outcome": "bug", "kind": "time", "error": traceback.format_exc()}
    except BaseException as error:
        kind = "memory" if _ran_out_of_memory(error) else "error"
        return {"outcome": "bug", "kind": kind, "error": traceback.format_exc()[-3000:]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _refusal(error: BaseException) -> dict[str, str]:
    text = str(error)
    if not text or len(text.splitlines()) != 1 or len(text) > 2000:
        return {"outcome": "bug", "kind": "message", "error": text[:3000]}
    if _ran_out_of_memory(error):
        return {"outcome": "bug", "kind": "memory", "error": traceback.format_exc()[-3000:]}
    return {"outcome": "refused", "error": type(error).__name__, "text": text[:300]}


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        text = str(error).lower()
        # FFmpeg calls it so, too, when it refuses what a file declares.
        if type(error).__module__.startswith("av."):
            return False
        if isinstance(error, MemoryError) or "allocate" in text or "out of memory" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def _written(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def peak_memory() -> int:
    """Most bytes that this process used since the last call."""
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    Path("/proc/self/clear_refs").write_text("5")  # begin anew
    return peak


def _virtual_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _time_is_up(*_: object) -> None:
    raise TimeIsUpError


def _say(line: dict) -> None:
    os.write(_output, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
