"""Runs docs/migration.md: its blocks in order, in a folder with the files that they read."""

import os
import re
from pathlib import Path

import pytest
from helpers.migration import make_files_of_others

from tmapdiff.data import load_charades_sta, tokenize

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
# A text block right after a Python block is what it prints.
BLOCKS = re.compile(r"```python\n(.*?)```\n(?:\n*```text\n(.*?)```)?", flags=re.DOTALL)


def test_the_page_runs_as_printed(tmp_path, monkeypatch, capsys):
    make_files_of_others(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = BLOCKS.findall(PAGE.read_text())
    assert len(blocks) > 5
    for code, output in blocks:
        exec(compile(code, str(PAGE), "exec"), names)
        printed = capsys.readouterr().out
        if output:
            assert printed == output
    assert Path("submission.jsonl").stat().st_size


def test_how_many_queries_of_charades_have_other_words():
    charades_root = os.environ.get("TMAPDIFF_CHARADES_ROOT")
    if not charades_root:
        pytest.skip("TMAPDIFF_CHARADES_ROOT names no folder with the Charades files")
    other = total = 0
    for split in ("train", "test"):
        for item in load_charades_sta(charades_root, split):
            total += 1
            # MS-2D-TAN's words of Charades-STA.
            other += tokenize(item.query) != item.query.removesuffix(".").lower().split()
    assert f"{other} of {total:,} queries" in PAGE.read_text()
