import re

from test_public_api import LEVELS, PAGE, ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text()
MARKERS = re.findall(r'^    "(\w+): ', PYPROJECT.split("markers = [")[1], re.MULTILINE)


def test_each_room_is_described_and_each_marker():
    described = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    names = set(re.findall(r"\w+", " ".join(described)))
    assert {*MARKERS, *LEVELS} - names == {"__main__", "_version", "errors"}
    assert len(PAGE.splitlines()) <= 120


def test_each_marked_test_runs_once_in_ci():
    assert len(MARKERS) == 7
    assert f"-m 'not ({' or '.join(MARKERS)})'" in PYPROJECT
    slow = " or ".join(one for one in MARKERS if one != "first_page")
    commands = (ROOT / ".ci" / "run").read_text()
    assert "pytest -m first_page" in commands
    for text in (commands, (ROOT / ".github" / "workflows" / "test.yml").read_text()):
        assert f'-m "{slow}"' in text
