"""The rooms that docs/contributing.md draws are those of the package, and on the same floors."""

import re
from itertools import groupby
from pathlib import Path

from test_public_api import LEVELS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text()


def is_drawn(room: str) -> bool:
    return not room.startswith("_") or room in ("_core", "_version", "__main__")


def test_the_drawing_is_what_imports_are_held_to():
    drawing = re.search(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[1]
    floors = [line.split() for line in reversed(drawing.splitlines())]
    by_level = groupby(sorted(filter(is_drawn, LEVELS), key=LEVELS.get), key=LEVELS.get)
    assert floors == [sorted(rooms) for _, rooms in by_level]
    rooms = {path.stem for path in (ROOT / "tmapdiff").iterdir() if path.suffix in ("", ".py")}
    assert {room for floor in floors for room in floor} == set(
        filter(is_drawn, rooms - {"__init__", "__pycache__"})
    )


def test_each_room_is_described_and_each_marker():
    described = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    names = set(re.findall(r"\w+", " ".join(described)))
    markers = (ROOT / "pyproject.toml").read_text().split("markers = [")[1].split("]")[0]
    wanted = set(re.findall(r'^    "(\w+): ', markers, re.MULTILINE)) | set(
        filter(is_drawn, LEVELS)
    )
    assert wanted - names == {"__main__", "_version", "errors"}
    assert len(PAGE.splitlines()) <= 120
