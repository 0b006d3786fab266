"""Comparisons that fail, each tested on wrong answers in test_helpers.py, and their tolerances."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tmapdiff.errors import TmapdiffError
from tmapdiff.inspection import Inspection


@dataclass(frozen=True)
class Tolerance:
    """Errors relative to the expected values.

    Attributes:
        typical: Highest root mean square of the error, over that of the expected values.
        worst: Highest error of one value, over the largest expected value.
    """

    typical: float
    worst: float


# Far below 5 %: a result that is scaled by 1.05 has to fail in every dtype (test_helpers.py).
TOLERANCES = {
    torch.float64: Tolerance(typical=1e-12, worst=1e-11),
    torch.float32: Tolerance(typical=1e-5, worst=3e-5),
    torch.float16: Tolerance(typical=5e-3, worst=1e-2),
    torch.bfloat16: Tolerance(typical=3e-2, worst=4e-2),
}


def assert_close(
    actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, what: str = "result"
) -> None:
    """Fail unless shapes are equal, all is finite, and the error is within the table.

    Args:
        actual: What came.
        expected: What should come.
        dtype: Row of the table: that in which the computation was done; that of `actual`, if None.
        what: Name of the result in the message.
    """
    tolerance = TOLERANCES[dtype or actual.dtype]
    if actual.shape != expected.shape:
        pytest.fail(f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if not (bool(actual.isfinite().all()) and bool(expected.isfinite().all())):
        pytest.fail(f"{what}: not finite")
    if not actual.numel():
        return
    error = (actual.double() - expected.double()).abs()
    wanted = expected.double().abs()
    # Products, not quotients: where all expected values are 0, all values have to be 0.
    typical, most = error.square().mean().sqrt(), wanted.square().mean().sqrt()
    if typical > tolerance.typical * most:
        pytest.fail(f"{what}: typical error {typical:.3g} where values are {most:.3g}")
    worst, most = error.max(), wanted.max()
    if worst > tolerance.worst * most:
        where = tuple(int(i) for i in (error == worst).nonzero()[0])
        pytest.fail(f"{what}: error {worst:.3g} at {where}, where values reach {most:.3g}")


def assert_same(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Fail unless dtypes, shapes and all values are equal; NaN equals nothing."""
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        pytest.fail(
            f"{what}: {actual.dtype} {tuple(actual.shape)}, "
            f"expected {expected.dtype} {tuple(expected.shape)}"
        )
    different = actual != expected
    if bool(different.any()):
        where = tuple(int(i) for i in different.nonzero()[0])
        pytest.fail(
            f"{what}: {int(different.sum())} of {different.numel()} values differ, "
            f"first at {where}: {actual[where]}, expected {expected[where]}"
        )


def assert_zero(tensor: Tensor, where: Tensor, what: str = "result") -> None:
    """Fail unless `tensor` is exactly 0 in all cells of the bool tensor `where`, at least one."""
    where = where.expand_as(tensor)
    if tensor.numel() and not bool(where.any()):
        pytest.fail(f"{what}: nothing to compare")
    if bool((tensor[where] != 0).any()):
        pytest.fail(f"{what}: {int((tensor[where] != 0).sum())} cells are not 0")


def assert_nonzero_exactly(tensor: Tensor, where: Tensor, what: str = "result") -> None:
    """Fail unless `tensor` is finite, non-zero where `where` is True, and exactly 0 elsewhere."""
    if tensor.shape != where.shape:
        pytest.fail(f"{what}: shape {tuple(tensor.shape)}, expected {tuple(where.shape)}")
    if not bool(tensor.isfinite().all()):
        pytest.fail(f"{what}: not finite")
    wrong = (tensor != 0) != where
    if bool(wrong.any()):
        pytest.fail(f"{what}: wrong at {[tuple(i) for i in wrong.nonzero().tolist()][:8]}")


@contextmanager
def refuses(kind: type[Exception], text: str, *more: str) -> Iterator[None]:
    """Fail unless the block raises a `TmapdiffError` of a kind, in one line with all texts."""
    with pytest.raises(kind, match=re.escape(text)) as caught:
        yield
    for other in more:
        if other not in str(caught.value):
            pytest.fail(f"{caught.value} does not say {other}")
    if not isinstance(caught.value, TmapdiffError):
        pytest.fail(f"{type(caught.value).__name__} is not a TmapdiffError")
    if "\n" in str(caught.value):
        pytest.fail(f"more than one line: {caught.value}")


def kinds(found: Inspection) -> dict[str, tuple[str, ...]]:
    """Items of what an inspection found, by kind."""
    return {finding.kind: finding.items for finding in found.findings}
