import re
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


def test_commands_name_files_extras_and_flags_that_exist():
    (install, *_) = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert install.startswith("python3 -m venv .venv && source .venv/bin/activate && pip install")
    pyproject = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"'\.\[(\w+)\]'", README):
        assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE), extra
    for script in re.findall(r"python ((?:examples|benchmarks)/\w+\.py)", README):
        assert (ROOT / script).exists(), script


def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[dev]' && python -m pytest" in README
    assert ".venv/bin/python -m pytest" in ci
    assert "'.[dev]'" in ci


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "pyproject.toml", ".ci/run"])
def test_no_path_of_a_developer_s_machine(name):
    assert not re.search(r"/(home|work|root|Users)/", (ROOT / name).read_text())
