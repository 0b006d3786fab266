"""Runs every Python block of every page of the documentation.

The blocks of a page run in order, in one namespace, in a folder with the files that
`conftest.make_files` makes. A block

    ```text
    ...
    ```

right after a Python block is what that block prints, to the letter. A block that cannot be run says
so in the line before it: `<!-- not run: reason -->`.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("**/*.md"))
TRAIN = {f"docs/guides/{name}.md" for name in ("pipeline", "robust-training", "scale")}
TRAIN |= {"docs/quickstart.md"}
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n+)?"
    r"^```python[^\n]*\n(?P<code>.*?)^```\n"
    r"(?:\n*```text\n(?P<output>.*?)^```)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    line: int
    code: str
    output: str | None
    reason: str | None


def blocks_of(text: str) -> list[Block]:
    return [
        Block(text.count("\n", 0, one.start("code")) + 1, one["code"], one["output"], one["reason"])
        for one in FENCE.finditer(text)
    ]


def run_blocks(page: str, text: str) -> None:
    names: dict = {"__name__": "__main__"}
    for block in blocks_of(text):
        if block.reason is not None:
            continue
        # The page's own line numbers, in a traceback too.
        code = compile("\n" * (block.line - 1) + block.code, page, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if block.output is not None:
            assert printed.getvalue() == block.output, f"{page}, line {block.line}"


def pages_with_blocks() -> Iterator[Any]:
    for page in PAGES:
        if "```python" in (ROOT / page).read_text():
            yield pytest.param(page, marks=[pytest.mark.train] if page in TRAIN else [])


@pytest.mark.parametrize("page", [*pages_with_blocks()])
def test_blocks_run_and_print_what_they_say(page, folder_of_a_reader):
    run_blocks(page, (ROOT / page).read_text())


def test_no_python_block_escapes():
    for page in PAGES:
        text = (ROOT / page).read_text()
        fences = re.findall(r"^\s*```\s*(?:py|pycon|python)\b", text, re.MULTILINE)
        assert len(blocks_of(text)) == len(fences), page


def test_a_wrong_output_is_noticed():
    with pytest.raises(AssertionError, match="page, line 2"):
        run_blocks("page", "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")


def test_a_failing_block_is_noticed_at_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("page", "# Title\n\n```python\na = 1\na / 0\n```\n")
    assert caught.traceback[-1].lineno + 1 == 5
