"""Holds what docs/migration.md says of words to the real files."""

from pathlib import Path

from tmapdiff.data import load_charades_sta, tokenize

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


def test_how_many_queries_of_charades_have_other_words(charades_root):
    other = total = 0
    for split in ("train", "test"):
        for item in load_charades_sta(charades_root, split):
            total += 1
            # MS-2D-TAN's words of Charades-STA.
            other += tokenize(item.query) != item.query.removesuffix(".").lower().split()
    assert f"{other} of {total:,} queries" in PAGE.read_text()
