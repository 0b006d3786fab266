import pytest
import torch
from helpers.assertions import refuses

from tmapdiff._core.checks import (
    check_length,
    check_shape,
    first_line,
    message,
    require,
)
from tmapdiff.errors import MissingDependencyError, ShapeError


def test_message_says_who_what_and_hint():
    assert message("f", "a list", 3) == "f: expected a list, got 3."
    assert message("f", "a list", 3, "Use [3].") == "f: expected a list, got 3. Use [3]."


def test_shapes_bind_and_tie_names():
    sizes = check_shape("f", "x", torch.zeros(2, 5, 2), "B N 2")
    assert sizes == {"B": 2, "N": 5}
    assert check_shape("f", "y", torch.zeros(5, 2), "N B", sizes) == sizes
    with refuses(ShapeError, "f: expected y of shape (N, B) with N = 5, B = 2, got (2, 5). Hint."):
        check_shape("f", "y", torch.zeros(2, 5), "N B", sizes, "Hint.")
    with refuses(ShapeError, "f: expected x of shape (N, N), got (2, 3)."):
        check_shape("f", "x", torch.zeros(2, 3), "N N")
    with refuses(ShapeError, "f: expected x of shape (B, 2), got list."):
        check_shape("f", "x", [[1, 2]], "B 2")
    assert sizes == {"B": 2, "N": 5}


def test_lengths():
    check_length("f", "xs", [1, 2], 2)
    for wrong, got in (([1], "1"), ("ab", "str"), (3, "int"), (None, "NoneType")):
        with refuses(ShapeError, f"f: expected xs to be a list of 2, got {got}."):
            check_length("f", "xs", wrong, 2)


@pytest.mark.parametrize(
    ("is_checkout", "how"),
    [
        (True, "In the checkout of tmapdiff, run: pip install -e '.[viz]'"),
        (False, "Install it with: pip install 'tmapdiff[viz]'"),
    ],
)
def test_missing_packages_name_the_extra(monkeypatch, tmp_path, is_checkout, how):
    assert require("json", extra="test", purpose="This").dumps(1) == "1"
    if not is_checkout:
        monkeypatch.setattr("tmapdiff._core.checks._ROOT", tmp_path)
    text = f"This needs the package no_such_package, which is not installed. {how}"
    with refuses(MissingDependencyError, text):
        require("no_such_package.part", extra="viz", purpose="This")


def test_error_inside_an_optional_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import not_installed_either\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_either"):
        require("broken_package", extra="viz", purpose="This")


def test_messages_are_one_line_that_can_be_read():
    text = message("a\nb", "c\u2028d", "x" * 10_000, "Do.")
    assert text == f"a b: expected c d, got {'x' * 500}.... Do."


def test_foreign_errors_are_a_line_without_a_full_stop():
    for error, line in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("\n  Two\twords.\nand a paragraph"), "Two words"),
        (KeyError(), "KeyError"),
        (ValueError("Errors in loading:\n\tmany"), "Errors in loading"),
        (ValueError("x" * 1000), "x" * 300),
    ):
        assert first_line(error) == line
