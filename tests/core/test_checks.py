from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.assertions import refuses

from tmapdiff._core.checks import (
    check_choice,
    check_floating,
    check_int,
    check_length,
    check_range,
    check_shape,
    check_sizes,
    first_line,
    message,
    require,
)
from tmapdiff.errors import ArgumentError, ConfigError, MissingDependencyError, ShapeError


def test_message_says_who_what_and_hint():
    assert message("f", "a list", 3) == "f: expected a list, got 3."
    assert message("f", "a list", 3, "Use [3].") == "f: expected a list, got 3. Use [3]."


def test_integers():
    assert check_int("f", "n", 3, at_least=3) == 3
    assert check_int("f", "n", torch.tensor(4), at_least=1) == 4
    for wrong in (2, 3.0, "3", None, True, float("nan")):
        with refuses(ArgumentError, f"f: expected n to be an integer >= 3, got {wrong!r}."):
            check_int("f", "n", wrong, at_least=3)


def test_ranges():
    assert check_range("f", "x", 0, 0, 1) == 0.0
    assert check_range("f", "x", 1e9, 0) == 1e9
    for number in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)):
        assert check_range("f", "x", number, 0, 1) == 0.5
    for wrong in (-0.1, 1.1, float("nan"), float("inf"), 10**400):
        with refuses(ArgumentError, f"f: expected x in [0, 1], got {wrong!r}."):
            check_range("f", "x", wrong, 0, 1)
    for wrong in ("a", "0.5", b"1", None, True, np.bool_(True), 1j, [1], np.ones(1), torch.ones(1)):
        with refuses(ArgumentError, f"f: expected x in [0, 1], got {wrong!r}."):
            check_range("f", "x", wrong, 0, 1)
    for wrong in (0, float("inf"), float("-inf")):
        with refuses(ArgumentError, f"f: expected x in (0, inf), got {wrong!r}."):
            check_range("f", "x", wrong, 0, open_low=True)


def test_choices():
    assert check_choice("f", "c", "a", ("a", "b")) == "a"
    with refuses(ConfigError, "f: expected c to be one of a, b, got 'x'."):
        check_choice("f", "c", "x", ("a", "b"))


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


def test_lengths_sizes_and_dtypes():
    check_length("f", "xs", [1, 2], 2)
    for wrong, got in (([1], "1"), ("ab", "str"), (3, "int"), (None, "NoneType")):
        with refuses(ShapeError, f"f: expected xs to be a list of 2, got {got}."):
            check_length("f", "xs", wrong, 2)
    assert check_sizes("f", "ks", (3, 5)) == [3, 5]
    for wrong in ([], 3, "35", None):
        text = f"f: expected ks to be a list of at least one size, got {wrong!r}."
        with refuses(ConfigError, text):
            check_sizes("f", "ks", wrong)
    with refuses(ArgumentError, "f: expected ks to be an integer >= 1, got 0."):
        check_sizes("f", "ks", [3, 0])
    check_floating("f", "x", torch.zeros(1))
    with refuses(ArgumentError, "f: expected x of a floating dtype, got torch.int64."):
        check_floating("f", "x", torch.zeros(1).long())


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
