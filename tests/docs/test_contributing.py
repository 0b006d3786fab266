import re

from test_public_api import LEVELS, PAGE, ROOT


def test_each_room_is_described_and_each_marker():
    described = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    names = set(re.findall(r"\w+", " ".join(described)))
    markers = (ROOT / "pyproject.toml").read_text().split("markers = [")[1].split("]")[0]
    wanted = {*re.findall(r'^    "(\w+): ', markers, re.MULTILINE), *LEVELS}
    assert wanted - names == {"__main__", "_version", "errors"}
    assert len(PAGE.splitlines()) <= 120
