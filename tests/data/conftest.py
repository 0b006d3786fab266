import json

import pytest
from helpers.datasets import charades_row, write_charades_split


@pytest.fixture
def charades(tmp_path):
    def write(lines, rows=None, **split):
        rows = [charades_row("AAAAA"), charades_row("BBBBB", "20.5", "")] if rows is None else rows
        return write_charades_split(tmp_path, lines, rows, **split)

    return write


@pytest.fixture
def write(tmp_path):
    """Write a file, of lines if there are several: texts as they are, all else as JSON."""

    def write(name, *contents):
        texts = [one if isinstance(one, str) else json.dumps(one) for one in contents]
        (tmp_path / name).write_text("\n".join(texts))
        return tmp_path / name

    return write
