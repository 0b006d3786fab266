"""Memory limits for single items of untrusted files."""

import os
from typing import BinaryIO

from tmapdiff._core.checks import message
from tmapdiff._core.numbers import parse_integer
from tmapdiff.errors import ArgumentError, SizeLimitError

LIMIT_VARIABLE = "TMAPDIFF_MAX_ITEM_BYTES"
LIMIT_HINT = f"Set the environment variable {LIMIT_VARIABLE} to raise the limit."
# Bytes of memory per byte of a file: for JSON, where `[],` becomes a list of about 70 bytes, and
# for a text that is cut into pieces.
JSON_GROWTH = 24
TEXT_GROWTH = 8


def max_item_bytes() -> int:
    """Return the limit in bytes for one item: a video's features, a line of text, a table.

    Set by the environment variable TMAPDIFF_MAX_ITEM_BYTES, which worker processes inherit.
    Defaults to 512 MiB.
    """
    stated = os.environ.get(LIMIT_VARIABLE)
    if not stated:
        return 512 * 2**20
    number = parse_integer(stated)
    if number is None or number < 1:
        expected = f"{LIMIT_VARIABLE} to be an integer >= 1"
        raise ArgumentError(message("environment", expected, repr(stated)))
    return number


def check_item_bytes(who: str, what: str, declared: int) -> None:
    """Raise SizeLimitError if an item declares more bytes than the limit."""
    most = max_item_bytes()
    if declared > most:
        expected = f"{what} of at most {most:,} bytes"
        raise SizeLimitError(message(who, expected, f"{declared:,}", LIMIT_HINT))


def read_at_most(who: str, file: BinaryIO, growth: int) -> bytes:
    """Read the rest of a file, within the limit at `growth` bytes of memory per byte."""
    check_item_bytes(who, "a text", os.fstat(file.fileno()).st_size * growth)
    # Devices and pipes do not report their size.
    content = file.read(max_item_bytes() // growth + 1)
    check_item_bytes(who, "a text", len(content) * growth)
    return content


def read_line(who: str, file: BinaryIO, growth: int) -> bytes:
    """Read a line of a file, with its line end; empty at the end of the file."""
    line = file.readline(max_item_bytes() // growth + 1)
    check_item_bytes(who, "a line", len(line) * growth)
    return line
