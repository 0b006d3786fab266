"""Nothing is claimed in docs/comparison.md that no test shows."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "comparison.md").read_text()
SHOWN = dict(re.findall(r"^(\d+)\. ((?:.|\n {4})+)", PAGE, re.MULTILINE))


@functools.cache
def parsed(file: str) -> ast.AST:
    return ast.parse((ROOT / file).read_text())


def exists(test: str) -> bool:
    file, *names = test.split("::")
    if not (ROOT / file).is_file():
        return False
    scope = parsed(file)
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


def test_every_claim_names_tests_that_exist():
    for number, text in SHOWN.items():
        tests = re.findall(r"`(tests/[^`]+)`", text)
        assert tests, number
        assert [test for test in tests if not exists(test)] == [], number


def test_every_number_in_the_table_leads_somewhere():
    assert set(re.findall(r"\[(\d+)\]", PAGE)) == set(SHOWN)


def test_every_claim_of_ours_has_a_number():
    table = PAGE[PAGE.index("| | tmapdiff") : PAGE.index("What the others have")]
    for row in table.strip().splitlines()[2:]:
        ours = row.split("|")[2].strip()
        assert ours == "no" or "not tested" in ours or re.search(r"\[\d+\]", ours), row


def test_a_missing_test_is_noticed():
    place = "tests/docs/test_comparison.py"
    for test in ("test_that_is_not_there", "exists", "test_a_missing_test_is_noticed::inside"):
        assert not exists(f"{place}::{test}")
    assert not exists(place)
    assert not exists("tests/none.py::test_a")
