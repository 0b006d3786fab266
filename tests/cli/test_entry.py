import contextlib
import json
import os
import pty
import resource
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.datasets import query_line, write_lines
from helpers.processes import SECONDS, start_program
from helpers.videos import write_video

import tmapdiff
from tmapdiff.cli import main
from tmapdiff.cli.app import COMMANDS

PROGRAM = [sys.executable, "-m", "tmapdiff"]


def run_python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.process
def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom tmapdiff.cli import main\nassert main(['--help']) == 0\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor: other work on the machine does not count.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert {"tmapdiff", "typer"} <= loaded
    assert not {"torch", "numpy", "diffusers", "timm", "h5py", "matplotlib", "rich"} & loaded
    assert seconds < 1
    for command in COMMANDS:
        assert f"  {command.replace('_', '-')} " in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tmapdiff {tmapdiff.__version__}\n"


WRONG_PLACES = {
    "train --root none --features timeline": "got no such folder.",
    "train --root empty --features timeline": "annotation files in empty",
    "train --root own --features none.h5": "nothing at none.h5",
    "train --train own/train.jsonl --test none.jsonl --features empty":
        "annotations at none.jsonl, got no such file.",
    "train --root own --features timeline": "Charades_v1_train.csv in own",
    "train --root empty --train own/train.jsonl --test own/test.jsonl --features timeline":
        "Charades_v1_train.csv in empty, got no such file. Pass the",
    "train --glove none.txt": "--glove: expected an existing path, got nothing at none.txt.",
    "train --root own --features empty --frame-encoder none":
        "--frame-encoder: expected an existing path, got nothing at none.",
    "evaluate p --root none --features timeline": "got no such folder.",
    "evaluate p --root own --features timeline": "Charades_v1_train.csv in",
    "evaluate p --test own/test.jsonl --test x/no.jsonl --features own":
        "annotations at x/no.jsonl, got no such file.",
    "evaluate p --test own/test.jsonl --features no.h5": "nothing at no.h5",
}  # fmt: skip


@pytest.mark.process
def test_wrong_places_are_reported_before_torch_is_loaded(tmp_path):
    (tmp_path / "empty").mkdir()
    for split in ("train", "test"):
        write_lines(tmp_path / "own" / f"{split}.jsonl", [query_line()])
    code = (
        "import sys\nfrom tmapdiff.cli import main\n"
        "for line in sys.argv[1:]:\n    print(main(line.split()), 'torch' in sys.modules)"
    )
    done = run_python(code, *WRONG_PLACES, cwd=tmp_path)
    assert set(done.stdout.splitlines()) == {"1 False"}, done.stderr
    for error, text in zip(done.stderr.splitlines(), WRONG_PLACES.values(), strict=True):
        assert error.startswith("error: ")
        assert text in error


@pytest.mark.process
def test_without_typer_the_extra_is_named():
    # A package that is not installed fails in just this way.
    code = (
        "import sys\nsys.modules['typer'] = None\nfrom tmapdiff.cli import main\nsys.exit(main([]))"
    )
    done = run_python(code)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: the command tmapdiff needs the package typer, which is not installed. "
        "In the checkout of tmapdiff, run: pip install -e '.[cli]'\n"
    )


@pytest.mark.process
def test_ctrl_c_is_code_130(tmp_path):
    # A hundred thousand frames to encode: it is still running, however slow this test is.
    write_video(tmp_path / "a.mp4", [0, 50, 100])
    options = ["--model", "test_resnet", "--random-weights", "--fps", "1000", "--out", "x.h5"]
    process = start_program(
        [*PROGRAM, "extract", ".", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "x.h5.parts").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in out + err


@pytest.mark.process
def test_a_reader_that_leaves_ends_it_quietly():
    process = start_program([*PROGRAM, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=SECONDS) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.process
def test_output_that_cannot_be_written(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    command = [*PROGRAM, "inspect", str(tmp_path), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    error = "error: cannot write the output: No space left on device."
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, error)
    assert "Traceback" not in done.stderr
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        assert subprocess.run(f"{shlex.join(command)} {closed}", shell=True).returncode == 0


@pytest.mark.process
def test_on_a_terminal_progress_is_shown_and_json_stays_json(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    controller, terminal = pty.openpty()
    process = start_program(
        [*PROGRAM, "convert", str(tmp_path), str(tmp_path / "new.h5"), "--json"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(timeout=SECONDS) == 0
    assert json.loads(out)["converted"] == ["a"]
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while part := os.read(controller, 4096):
            shown += part
    os.close(controller)
    assert b"converting" in shown
