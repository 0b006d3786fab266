"""Damaged files of every format end in a result or in an error of ours, soon and in little memory.

500 cases here; `python -m helpers.fuzzing` runs as many as one likes.
"""

import os

import pytest
from helpers.fuzzing.runner import divide, fuzz
from helpers.fuzzing.targets import TARGETS

pytestmark = pytest.mark.process
CASES = int(os.environ.get("TMAPDIFF_FUZZ_CASES", "500"))
SEED = int(os.environ.get("TMAPDIFF_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def findings():
    pytest.importorskip("av")
    return fuzz(divide(CASES, list(TARGETS)), seed=SEED)


def test_damaged_files(findings):
    for target in TARGETS:
        found = findings[target]
        assert not found.bugs, "\n\n".join(map(str, found.bugs))
        assert found.outcomes.total() >= 5, target


def test_as_many_cases_as_are_promised(findings):
    number = sum(found.outcomes.total() for found in findings.values())
    assert abs(number - CASES) <= len(TARGETS)
    # Or the damage would be too little to see, or too much to get anywhere.
    assert sum(found.outcomes["refused"] for found in findings.values()) > number / 10
    assert sum(found.outcomes["result"] for found in findings.values()) > number / 10


def test_bugs_are_found_and_a_crash_ends_one_case_only():
    found = fuzz({"self-test": 8}, seconds=1)["self-test"]
    assert found.outcomes == {"bug": 6, "refused": 1, "result": 1}
    expected = (
        ("error", "ZeroDivisionError"),
        ("message", "two\nlines"),
        ("memory", "MemoryError"),
        ("time", "TimeIsUpError"),
        ("crash", "Segmentation fault"),
        ("error", "AssertionError"),
    )
    for bug, case, (kind, text) in zip(found.bugs, range(6), expected, strict=True):
        assert (bug.case, bug.kind) == (case, kind)
        assert text in bug.error
