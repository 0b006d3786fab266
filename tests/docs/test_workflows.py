import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = {
    path.stem: path.read_text() for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}
JOBS = {name: yaml.safe_load(text)["jobs"] for name, text in WORKFLOWS.items()}
STEPS = [
    (name, step) for name, jobs in JOBS.items() for job in jobs.values() for step in job["steps"]
]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_actions_are_pinned_by_major_version():
    for name, step in STEPS:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"]), (name, step)


def test_rights_are_asked_for_by_the_job_that_needs_them():
    for name, text in WORKFLOWS.items():
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}, name


def test_no_step_finds_the_token_that_checked_out():
    checkouts = [(name, step) for name, step in STEPS if "checkout" in step.get("uses", "")]
    assert {name for name, _ in checkouts} == WORKFLOWS.keys()
    for name, step in checkouts:
        assert step["with"]["persist-credentials"] is False, name


def test_every_python_that_is_promised_is_tested():
    tested = JOBS["test"]["test"]["strategy"]["matrix"]["python-version"]
    assert [tested[0]] == re.findall(r'requires-python = ">=([\d.]+)"', PYPROJECT)


def test_extras_exist():
    extras = re.findall(r"\[(\w+)\]['\"]", "".join(WORKFLOWS.values()))
    extras += " ".join(JOBS["nightly"]["lowest"]["strategy"]["matrix"]["extras"]).split()
    for extra in extras:
        assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE), extra


def test_the_night_fuzzes_audits_and_tries_the_lowest_versions():
    commands = {
        name: " ".join(step.get("run", "") for step in job["steps"])
        for name, job in JOBS["nightly"].items()
    }
    assert "--cases 10000" in commands["fuzz"]
    assert "--resolution lowest-direct" in commands["lowest"]
    assert commands["lowest"].endswith('python -m pytest -m "not first_page"')  # all other tests
    assert "pip-audit" in commands["audit"]


def test_all_dependencies_have_a_lower_end():
    tables = PYPROJECT.split("dependencies = [")[1].split("[project.scripts]")[0]
    tables += PYPROJECT.split("[project.optional-dependencies]")[1].split("[tool")[0]
    requirements = re.findall(r'"([^"]+)"', tables)
    assert len(requirements) > 20
    bounded = r"tmapdiff\[[\w,]+\]|[\w-]+(\[\w+\])?>=\d[\d.]*"
    assert [one for one in requirements if not re.fullmatch(bounded, one)] == []
