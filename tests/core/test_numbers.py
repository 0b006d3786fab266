import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmapdiff._core.numbers import parse_integer, parse_number

# All of these are numbers to Python.
REFUSED = ["1_0", "nan", "inf", "-Infinity", "\uff11", "\u0663.5", " 1", "1\n", "1e999"]


@pytest.mark.parametrize(
    "text", [*REFUSED, "", ".", "-", "1,5", "0x10", "1e", "1.2.3", "--1", "e5"]
)
def test_what_is_no_plain_number_is_none(text):
    assert parse_number(text) is None
    assert parse_integer(text) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_as_python_writes_them(number):
    for text in (repr(number), f"{number:g}", f"{number:e}", f"{number:.3f}", f"{number:+.1f}"):
        assert parse_number(text) == float(text)


@given(st.integers(-(10**30), 10**30))
def test_integers_as_python_writes_them(number):
    assert parse_integer(str(number)) == parse_integer(f"{number:+d}") == number
    assert parse_number(str(number)) == float(number)
    assert parse_integer(f"{number}.0") is None


@given(st.text(st.sampled_from("0123456789.+-eE_ nainf\uff11\u0663"), max_size=8))
def test_what_is_a_number_is_python_s_and_made_of_digits(text):
    number = parse_number(text)
    if number is not None:
        assert number == float(text)
        assert re.fullmatch("[0-9eE.+-]+", text)
