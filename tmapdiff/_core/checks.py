"""Checks of user input and their error messages: `who: expected ..., got .... hint`."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from tmapdiff._core.numbers import finite_number, plain
from tmapdiff.errors import (
    ArgumentError,
    ConfigError,
    FileError,
    MissingDependencyError,
    ShapeError,
    TmapdiffError,
)

if TYPE_CHECKING:
    from torch import Tensor

Choice = TypeVar("Choice")
_ROOT = Path(__file__).parents[2]  # a checkout, or where packages are installed
_LONGEST = 500  # characters of a part of a message


def message(who: str, expected: str, got: object, hint: str = "") -> str:
    """Format an error in one line: `who: expected ..., got .... hint`."""
    text = f"{short(who)}: expected {short(expected)}, got {short(str(got))}."
    return text + (f" {hint}" if hint else "")


def short(text: str) -> str:
    """Put a text into one line of limited length, as untrusted names and contents may be long."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def shown(value: object) -> str:
    """Return `repr`, cut to a length that fits a message."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:60]}...")
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its period."""
    text = getattr(error, "strerror", None) or str(error)
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return " ".join(first.split()).rstrip(" .:")[:300]


@contextmanager
def foreign_errors(kind: type[TmapdiffError], what: str) -> Iterator[None]:
    """Convert errors of other libraries to `kind`, with a one-line message starting with `what`."""
    try:
        yield
    except TmapdiffError:
        raise
    # Damaged files can raise anything in parsers, decompressors, hubs and third-party models.
    except Exception as error:
        raise kind(f"{what}: {first_line(error)}.") from error


def check_int(who: str, name: str, value: Any, *, at_least: int, hint: str = "") -> int:
    """Return `value` as an int; raise ArgumentError if it is not one or is below `at_least`."""
    number = plain(value)
    whole = not isinstance(number, bool) and hasattr(number, "__index__")
    if not whole or int(number) < at_least:
        expected = f"{name} to be an integer >= {at_least}"
        raise ArgumentError(message(who, expected, repr(value), hint))
    return int(number)


def check_range(
    who: str, name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a float; raise ArgumentError if it is not a number in `[low, high]`.

    Accepts Python numbers and NumPy and torch scalars, but not strings, booleans or None.
    """
    number = finite_number(value)
    if number is None or number > high or number < low or (open_low and number == low):
        bracket = "(" if open_low else "["
        end = "inf)" if math.isinf(high) else f"{high:g}]"
        expected = f"{name} in {bracket}{low:g}, {end}"
        raise ArgumentError(message(who, expected, repr(value)))
    return number


def check_bool(who: str, name: str, value: Any) -> None:
    """Raise ArgumentError unless `value` is True or False (the string "false" would be truthy)."""
    if not isinstance(plain(value), bool):
        raise ArgumentError(message(who, f"{name} to be True or False", repr(value)))


def check_no_address(who: str, path: str | os.PathLike[str]) -> None:
    """Raise FileError if a path is a URL, such as `https://host/video.mp4`."""
    text = os.fspath(path)
    # A Path keeps only one slash. A single letter is a drive.
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) or os.path.exists(path):
        return
    address = re.sub(":/+", "://", text, count=1)
    hint = "URLs are not supported: download the file first."
    raise FileError(message(who, "a path", address, hint))


def check_list(who: str, name: str, values: Any) -> list[Any]:
    """Return `values` as a list; raise ArgumentError if they are a string, mapping or scalar."""
    if not isinstance(values, str | bytes | Mapping):
        try:
            return list(values)
        except TypeError:  # not iterable, or a 0-d array
            pass
    raise ArgumentError(message(who, f"{name} to be a list", repr(values)))


def check_choice(who: str, name: str, value: Choice, choices: Iterable[Choice]) -> Choice:
    """Return `value`; raise ConfigError if it is not one of `choices`."""
    legal = list(choices)
    if value not in legal:
        expected = f"{name} to be one of {', '.join(map(str, legal))}"
        raise ConfigError(message(who, expected, repr(value)))
    return value


def check_shape(
    who: str,
    name: str,
    tensor: Any,
    axes: str,
    sizes: dict[str, int] | None = None,
    hint: str = "",
) -> dict[str, int]:
    """Check that `tensor` has `axes`, such as `"B 64 A"`, and return the sizes by name.

    An axis is a number or a name. A name must have the same size everywhere and in `sizes`.
    """
    from torch import Tensor  # here, as checks of annotations must not import torch

    known = dict(sizes or {})
    wanted = axes.split()
    if isinstance(tensor, Tensor) and tensor.dim() == len(wanted):
        for axis, size in zip(wanted, tensor.shape, strict=True):
            if size != (int(axis) if axis.isdigit() else known.setdefault(axis, size)):
                break
        else:
            return known
    bound = [f"{axis} = {sizes[axis]}" for axis in dict.fromkeys(wanted) if sizes and axis in sizes]
    expected = f"{name} of shape ({', '.join(wanted)})"
    if bound:
        expected += f" with {', '.join(bound)}"
    got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    raise ShapeError(message(who, expected, got, hint))


def check_length(who: str, name: str, items: Any, length: int, hint: str = "") -> None:
    """Raise ShapeError unless `items` is a list or tuple of `length` entries."""
    is_list = isinstance(items, Sequence) and not isinstance(items, str | bytes)
    if not is_list or len(items) != length:
        got = len(items) if is_list else type(items).__name__
        raise ShapeError(message(who, f"{name} to be a list of {length}", got, hint))


def check_sizes(who: str, name: str, values: Any) -> list[int]:
    """Return `values` as a list of at least one integer >= 1, or raise."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not values:
        raise ConfigError(message(who, f"{name} to be a list of at least one size", repr(values)))
    return [check_int(who, name, value, at_least=1) for value in values]


def check_floating(who: str, name: str, tensor: "Tensor") -> None:
    """Raise ArgumentError unless `tensor` holds floating-point numbers."""
    if not tensor.is_floating_point():
        raise ArgumentError(message(who, f"{name} of a floating dtype", tensor.dtype))


def require(package: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        how = f"Install it with: pip install 'tmapdiff[{extra}]'"
        if (_ROOT / "pyproject.toml").is_file():
            how = f"In the checkout of tmapdiff, run: pip install -e '.[{extra}]'"
        text = f"{purpose} needs the package {package.split('.')[0]}, which is not installed. {how}"
        raise MissingDependencyError(text) from None
