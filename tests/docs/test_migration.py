"""Holds what docs/migration.md says of words to the real files."""

import os
from pathlib import Path

import pytest

from tmapdiff.data import load_charades_sta, tokenize

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


@pytest.mark.exhaustive
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
