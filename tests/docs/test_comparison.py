"""Nothing is claimed in docs/comparison.md that no test shows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "comparison.md").read_text()
SHOWN = dict(re.findall(r"^(\d+)\. ((?:.|\n {4})+)", PAGE, re.MULTILINE))


def exists(test: str) -> bool:
    file, *names = test.split("::")
    if not (ROOT / file).is_file():
        return False
    scope: ast.AST = ast.parse((ROOT / file).read_text())
    for name in names:
        inside = {
            node.name: node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        if name not in inside:
            return False
        scope = inside[name]
    return names != [] and names[-1].startswith("test_")


@pytest.mark.parametrize("number", SHOWN)
def test_every_claim_names_tests_that_exist(number):
    tests = re.findall(r"`(tests/[^`]+)`", SHOWN[number])
    assert tests
    assert [test for test in tests if not exists(test)] == []


def test_every_number_in_the_table_leads_somewhere():
    assert set(re.findall(r"\[(\d+)\]", PAGE)) == set(SHOWN)


def test_every_claim_of_ours_has_a_number():
    table = PAGE[PAGE.index("| | tmapdiff") : PAGE.index("What the others have")]
    for row in table.strip().splitlines()[2:]:
        ours = row.split("|")[2].strip()
        assert ours == "no" or "not tested" in ours or re.search(r"\[\d+\]", ours), row


@pytest.mark.parametrize(
    "test",
    ["tests/docs/test_comparison.py::test_that_is_not_there", "tests/none.py::test_a",
     "tests/docs/test_comparison.py::exists", "tests/docs/test_comparison.py"],
)  # fmt: skip
def test_a_missing_test_is_noticed(test):
    assert not exists(test)
