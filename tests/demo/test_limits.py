import pytest

from tmapdiff.demo import DemoLimits
from tmapdiff.errors import ArgumentError


def test_numbers_are_checked():
    with pytest.raises(ArgumentError, match=r"expected max_seconds in \(0, inf\), got 0"):
        DemoLimits(max_seconds=0)
    with pytest.raises(ArgumentError, match="expected max_steps to be an integer >= 1, got 0"):
        DemoLimits(max_steps=0)
