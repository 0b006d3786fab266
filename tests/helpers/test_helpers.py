"""The comparisons themselves: each fails on wrong answers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.assertions import (
    TOLERANCES,
    assert_close,
    assert_nonzero_exactly,
    assert_same,
    assert_zero,
    refuses,
)
from helpers.contracts import draw

from tmapdiff.errors import ArgumentError, ShapeError


def fails(compare: Callable[..., None], *arguments: Any, match: str | None = None) -> None:
    with pytest.raises(pytest.fail.Exception, match=match):
        compare(*arguments)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_assert_close_accepts_rounding_and_fails_on_wrong_answers(dtype: torch.dtype) -> None:
    exact = draw(3, 4, 5, dtype=torch.float64)
    right = exact.to(dtype)
    assert_close(right, exact)
    for wrong in (
        right * 1.05,
        -right,
        right + 0.1,
        torch.zeros_like(right),
        right.mT.reshape(right.shape),
        right.masked_fill(right == right.max(), 0),
        right.masked_fill(right == right.max(), torch.nan),
        right.masked_fill(right == right.max(), torch.inf),
        right[:1],
        right[..., None],
        right[0].expand_as(right),
    ):
        fails(assert_close, wrong, right)
    # Zeros have to be zeros.
    zeros = torch.zeros(3, 4, dtype=dtype)
    assert_close(zeros, zeros.clone())
    fails(assert_close, zeros + 1e-4, zeros)


def test_assert_same_fails() -> None:
    right = torch.tensor([1.0, 2.0])
    assert_same(right, right.clone())
    for wrong in (
        torch.tensor([1.0, torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))]),
        torch.tensor([1.0, torch.nan]),
        right.double(),
        right[None],
        right[:1],
    ):
        fails(assert_same, wrong, right)


def test_nan_is_wrong_even_where_it_is_expected() -> None:
    nan = torch.tensor([torch.nan])
    fails(assert_close, nan, nan, match="not finite")
    fails(assert_same, nan, nan, match="differ")


def test_comparisons_with_zero_fail() -> None:
    where = torch.tensor([True, False])
    assert_zero(torch.tensor([[0.0, 5.0]]), where)
    for value in (1e-30, -1.0, torch.nan):
        fails(assert_zero, torch.tensor([[value, 5.0]]), where, match="not 0")
    fails(assert_zero, torch.zeros(2), torch.tensor([False, False]), match="nothing")
    assert_nonzero_exactly(torch.tensor([1.0, 0.0]), where)
    for wrong in ([0.0, 0.0], [1.0, 1e-30], [torch.nan, 0.0], [[1.0, 0.0]]):
        fails(assert_nonzero_exactly, torch.tensor(wrong), where)


@pytest.mark.parametrize(
    ("error", "texts", "failure"),
    [
        (None, ("got",), "DID NOT RAISE"),
        (ArgumentError("got 4"), ("got 3",), "Regex pattern did not match"),
        (ArgumentError("got 3"), ("got", "4"), "does not say 4"),
        (ValueError("got 3"), ("got",), "not a TmapdiffError"),
        (ArgumentError("got 3\nhint"), ("got",), "more than one line"),
    ],
)
def test_refuses_fails(error: Exception | None, texts: tuple[str, ...], failure: str) -> None:
    def refuse() -> None:
        with refuses(type(error) if error else ArgumentError, *texts):
            if error:
                raise error

    with pytest.raises((AssertionError, pytest.fail.Exception), match=failure):
        refuse()


def test_refuses_accepts_the_kind_and_its_children() -> None:
    with refuses(ArgumentError, "got", "(2, 3)."):
        raise ShapeError("who: expected (1,), got (2, 3).")
