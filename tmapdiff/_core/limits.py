"""How much of the memory one item of a file may take: an untrusted one may declare anything."""

import os
from typing import BinaryIO

from tmapdiff._core.checks import message
from tmapdiff._core.numbers import parse_integer
from tmapdiff.errors import ArgumentError, SizeLimitError

LIMIT_VARIABLE = "TMAPDIFF_MAX_ITEM_BYTES"
DEFAULT_MAX_ITEM_BYTES = 512 * 2**20
# Bytes of memory that one byte may become: of JSON, where `[],` is a list of some seventy, and of
# a text that is cut into pieces.
JSON_GROWTH = 24
TEXT_GROWTH = 8


def max_item_bytes() -> int:
    """Most bytes that one item may take: the features of a video, a line of text, a table.

    The environment variable TMAPDIFF_MAX_ITEM_BYTES says it, also of worker processes; 512 MiB, if
    it is not set.
    """
    stated = os.environ.get(LIMIT_VARIABLE)
    if not stated:
        return DEFAULT_MAX_ITEM_BYTES
    number = parse_integer(stated)
    if number is None or number < 1:
        expected = f"{LIMIT_VARIABLE} to be an integer >= 1"
        raise ArgumentError(message("environment", expected, repr(stated)))
    return number


def check_item_bytes(who: str, what: str, declared: int) -> None:
    """Raise SizeLimitError if an item declares that it takes more than it may, before it does."""
    most = max_item_bytes()
    if declared > most:
        expected = f"{what} of at most {most:,} bytes"
        raise SizeLimitError(message(who, expected, f"{declared:,}", limit_hint()))


def limit_hint() -> str:
    """Say how the limit is raised."""
    return f"Set the environment variable {LIMIT_VARIABLE} if it is meant."


def read_at_most(who: str, file: BinaryIO, growth: int) -> bytes:
    """Read the rest of a file that is kept in memory."""
    check_item_bytes(who, "a text", os.fstat(file.fileno()).st_size * growth)
    # Of devices and pipes, nothing but reading tells the size.
    content = file.read(max_item_bytes() // growth + 1)
    check_item_bytes(who, "a text", len(content) * growth)
    return content


def read_line(who: str, file: BinaryIO, growth: int) -> bytes:
    """Read a line of a file, with its end; empty at the end of the file."""
    line = file.readline(max_item_bytes() // growth + 1)
    check_item_bytes(who, "a line", len(line) * growth)
    return line
