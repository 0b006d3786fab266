"""Damage to the bytes of a file: what failing disks, broken downloads and strangers do to it."""

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_EXTREMES = (0, 1, 2, 2**7 - 1, 2**8 - 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)
_NUMBERS = (
    *(b"0", b"-1", b"1e999", b"-1e-999", b"NaN", b"Infinity", b"null", b"true", b'""', b"[]"),
    *(b"1_0", b"-0.04", b"inf", "\uff11".encode(), b'" 1"'),
    *(b"{}", b"1e9", b"1000000000000", b"9" * 40, b"0.0", b"1" * 5000, b'"../../etc/passwd"'),
)
# What JSON holds, of each kind.
_KINDS = (
    *(None, True, "4", "false", "../x", [], ["x"], [[4]], {}, {"a": 1}),
    *(0, -1, 1.5, math.nan, 10**18),
)
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")
_TOKENS = (
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\n", b"\r\n", b'"', b"[", b"]", b"{", b"}", b"##"),
    *(b"%=", b"%3A", b":", b"._", b"con.", b"x" * 300, b"v_", b".avi"),
    *(b",", b";", b"[" * 3000, b"\\ud800", b"../", b"C:\\", b"\xe2\x80\xa8", b"\xef\xbb\xbf"),
)


def mutate(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage some bytes, in one to four ways.

    Args:
        content: What a file holds.
        draw: Decides what is damaged, and how.
        others: Contents to splice with.
    """
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        content = draw.choice(_WAYS)(content, draw, others)
    return content


def _flip_bits(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if damaged:
            damaged[_place(damaged, draw)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _set_bytes(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(content, draw)
    length = draw.choice((1, 2, 4, 8, 64))
    value = draw.choice((b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01"))
    return content[:start] + value * length + content[start + length :]


def _set_integer(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    start, width = _place(content, draw), draw.choice((1, 2, 4, 8))
    value = draw.choice(_EXTREMES) % 2 ** (8 * width)
    order = draw.choice(("little", "big"))
    return content[:start] + value.to_bytes(width, order) + content[start + width :]


def _set_number(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Put another number in the place of one that is written in digits."""
    if len(content) > 1 << 20 or not (found := list(_NUMBER.finditer(content))):
        return _set_integer(content, draw, others)
    number = draw.choice(found)
    return content[: number.start()] + draw.choice(_NUMBERS) + content[number.end() :]


def _set_kind(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Put a value of another kind in the place of one, or of several, of a JSON document."""
    try:
        document = json.loads(content) if len(content) < 1 << 20 else None
    except (ValueError, RecursionError):
        document = None
    if not (places := list(_places(document))):
        return _set_number(content, draw, others)
    place, key = draw.choice(places)
    place[key] = draw.choice(_KINDS)
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _insert_token(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(content, draw)
    return content[:start] + draw.choice(_TOKENS) + content[start:]


def _truncate(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _cut_out(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(content, draw)
    return content[:start] + content[start + draw.choice((1, 4, 16, 256, 4096)) :]


def _repeat(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(content, draw)
    piece = content[start : start + draw.choice((1, 4, 16, 256, 4096))]
    return content[:start] + piece * draw.choice((2, 2, 17)) + content[start + len(piece) :]


def _insert_noise(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(content, draw)
    return content[:start] + draw.randbytes(draw.choice((1, 4, 16, 256))) + content[start:]


def _splice(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Go on with another file from some place."""
    other = draw.choice(others) if others else content
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]


_WAYS: tuple[Callable[[bytes, random.Random, Sequence[bytes]], bytes], ...] = (
    *(_flip_bits, _flip_bits, _set_bytes, _set_integer, _set_integer, _set_number, _set_number),
    *(_set_kind, _set_kind, _insert_token, _truncate, _cut_out, _repeat, _insert_noise, _splice),
)


def _place(content: bytes | bytearray, draw: random.Random) -> int:
    """Where to damage: as often in the first 512 bytes, where headers are, as anywhere."""
    size = len(content) if draw.random() < 0.5 else min(len(content), 512)
    return draw.randrange(max(size, 1))
