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
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("**/*.md"))
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
        Block(text.count("\n", 0, match.start("code")) + 1, match["code"], match["output"],
              match["reason"])
        for match in FENCE.finditer(text)
    ]  # fmt: skip


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


def has_blocks(page: str) -> bool:
    return "```python" in (ROOT / page).read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if has_blocks(page)])
def test_blocks_run_and_print_what_they_say(page, folder_of_a_reader):
    run_blocks(page, (ROOT / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_no_python_block_escapes(page):
    text = (ROOT / page).read_text()
    assert len(blocks_of(text)) == len(re.findall(r"^\s*```\s*(?:py|pycon|python)\b", text, re.M))


def test_a_wrong_output_is_noticed():
    with pytest.raises(AssertionError, match="page, line 2"):
        run_blocks("page", "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")


def test_a_failing_block_is_noticed_at_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("page", "# Title\n\n```python\na = 1\na / 0\n```\n")
    assert caught.traceback[-1].lineno + 1 == 5


def test_blocks_share_names_and_marked_ones_do_not_run():
    run_blocks(
        "page",
        "```python\na = 2\n```\n<!-- not run: needs a video -->\n```python\na = 1 / 0\n```\n"
        "```python\nprint(a)\n```\n```text\n2\n```\n",
    )
