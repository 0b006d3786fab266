import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> list[dict]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_there_are_four():
    assert [path.stem for path in WORKFLOWS] == ["docs", "nightly", "publish", "test"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_major_version(workflow):
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_are_asked_for_by_the_job_that_needs_them(workflow):
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"] == {"contents": "read"}


def test_every_python_that_is_promised_is_tested():
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    tested = content["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    (lowest,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert tested[0] == lowest


def exists(extra: str) -> bool:
    return bool(re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M))


def test_extras_exist():
    for workflow in WORKFLOWS:
        for extra in re.findall(r"\[(\w+)\]['\"]", workflow.read_text()):
            assert exists(extra), extra


def test_the_night_fuzzes_audits_and_tries_the_lowest_versions():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())["jobs"]
    commands = {
        name: " ".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()
    }
    assert "--cases 10000" in commands["fuzz"]
    assert "--resolution lowest-direct" in commands["lowest"]
    assert commands["lowest"].endswith("python -m pytest")  # all tests
    assert all(map(exists, " ".join(jobs["lowest"]["strategy"]["matrix"]["extras"]).split()))
    assert "pip-audit" in commands["audit"]


def test_all_dependencies_have_a_lower_end():
    pyproject = (ROOT / "pyproject.toml").read_text()
    tables = pyproject.split("dependencies = [")[1].split("[project.scripts]")[0]
    tables += pyproject.split("[project.optional-dependencies]")[1].split("[tool")[0]
    requirements = re.findall(r'"([^"]+)"', tables)
    assert len(requirements) > 20
    for requirement in requirements:
        assert re.fullmatch(r"tmapdiff\[[\w,]+\]|[\w-]+(\[\w+\])?>=\d[\d.]*", requirement), (
            requirement
        )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_no_step_finds_the_token_that_checked_out(workflow):
    checkouts = [one for one in steps(workflow) if "checkout" in one.get("uses", "")]
    assert checkouts
    for one in checkouts:
        assert one["with"]["persist-credentials"] is False
