"""Damaged files of every format end in a result or in an error of ours, soon and in little memory.

500 cases here; `python -m helpers.fuzzing` runs as many as one likes.
"""

import os

import pytest
from helpers.fuzzing.runner import Bug, divide, fuzz
from helpers.fuzzing.targets import TARGETS

pytestmark = pytest.mark.process

CASES = int(os.environ.get("TMAPDIFF_FUZZ_CASES", "500"))
SEED = int(os.environ.get("TMAPDIFF_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def findings():
    pytest.importorskip("av")
    return fuzz(divide(CASES, list(TARGETS)), seed=SEED)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files(findings, target):
    found = findings[target]
    assert not found.bugs, "\n\n".join(map(str, found.bugs))
    assert found.outcomes.total() >= 5


def test_as_many_cases_as_are_promised(findings):
    number = sum(found.outcomes.total() for found in findings.values())
    assert abs(number - CASES) <= len(TARGETS)
    # Or the damage would be too little to see, or too much to get anywhere.
    assert sum(found.outcomes["refused"] for found in findings.values()) > number / 10
    assert sum(found.outcomes["result"] for found in findings.values()) > number / 10


@pytest.mark.parametrize(
    ("case", "kind", "text"),
    [
        (0, "error", "ZeroDivisionError"),
        (1, "message", "two\nlines"),
        (2, "memory", "MemoryError"),
        (3, "time", "TimeIsUpError"),
        (4, "crash", "Segmentation fault"),
        (5, "error", "AssertionError"),
    ],
)
def test_bugs_are_found(bad_findings, case, kind, text):
    (bug,) = [one for one in bad_findings.bugs if one.case == case]
    assert isinstance(bug, Bug)
    assert bug.kind == kind
    assert text in bug.error


def test_a_crash_ends_one_case_only(bad_findings):
    assert [bug.case for bug in bad_findings.bugs] == [0, 1, 2, 3, 4, 5]
    assert bad_findings.outcomes == {"bug": 6, "refused": 1, "result": 1}


@pytest.fixture(scope="module")
def bad_findings():
    return fuzz({"self-test": 8}, seconds=1)["self-test"]
