import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_example_runs_as_printed():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    _, code = blocks  # test_first_page.py runs both
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["loss"].isfinite()
    names["loss"].backward()
    assert names["predicted"].shape == names["clean"].shape


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_extras_exist():
    pyproject = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\w+", " ".join(re.findall(r"'\.\[([\w,]+)\]'", README))):
        assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE), extra


@pytest.mark.process
def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    answer, tests, *_ = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    for command, last in ((answer, "tmapdiff localize"), (tests, "python -m pytest\n")):
        assert command.startswith("python3 -m venv .venv &&")
        assert f".venv/bin/{last}" in command.split("&&")[-1]
    (block,) = re.findall(r"^block\(\).*", ci, re.MULTILINE)
    for number, command in ((1, answer), (2, tests)):
        assert f'bash -c "$(block {number})' in ci
        called = ["bash", "-c", f"{block}; block {number}"]
        assert subprocess.check_output(called, cwd=ROOT, text=True) == command


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "pyproject.toml", ".ci/run"])
def test_no_path_of_a_developer_s_machine(name):
    assert not re.search(r"/(home|work|root|Users)/", (ROOT / name).read_text())
