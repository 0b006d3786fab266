import io

import pytest
from helpers.assertions import refuses

from tmapdiff._core import limits
from tmapdiff.errors import ArgumentError, FileError, SizeLimitError


def test_the_limit_and_its_variable(monkeypatch):
    monkeypatch.delenv("TMAPDIFF_MAX_ITEM_BYTES", raising=False)
    assert limits.max_item_bytes() == 512 * 2**20
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "1000")
    assert limits.max_item_bytes() == 1000
    limits.check_item_bytes("who", "a thing", 1000)
    with refuses(
        SizeLimitError,
        "who: expected a thing of at most 1,000 bytes, got 1,001. "
        "Set the environment variable TMAPDIFF_MAX_ITEM_BYTES to raise the limit.",
    ):
        limits.check_item_bytes("who", "a thing", 1001)
    assert issubclass(SizeLimitError, FileError)


@pytest.mark.parametrize("stated", ["much", "0", "-1", "1.5", "1_0", "nan", "\uff11", " 1", "1\n"])
def test_a_variable_that_is_no_number(monkeypatch, stated):
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", stated)
    with refuses(ArgumentError, "expected TMAPDIFF_MAX_ITEM_BYTES to be an integer >= 1, got"):
        limits.max_item_bytes()


def test_no_more_is_read_than_may_be(monkeypatch, tmp_path):
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "100")
    path = tmp_path / "text"
    path.write_bytes(b"x" * 10 + b"\n" + b"x" * 5000)
    with path.open("rb") as file:
        assert limits.read_line("who", file, 8) == b"x" * 10 + b"\n"
        with refuses(SizeLimitError, "who: expected a line of at most 100 bytes, got 104."):
            limits.read_line("who", file, 8)
        assert file.tell() < 50
        file.seek(0)
        with refuses(SizeLimitError, "who: expected a text of at most 100 bytes, got 40,088."):
            limits.read_at_most("who", file, 8)
        assert file.tell() == 0
    path.write_bytes(b"x" * 12)
    with path.open("rb") as file:
        assert limits.read_at_most("who", file, 8) == b"x" * 12


def test_what_has_no_size_is_read_with_care(monkeypatch):
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "1000")
    with (
        open("/dev/zero", "rb") as file,
        refuses(SizeLimitError, "endless: expected a text of at most 1,000 bytes"),
    ):
        limits.read_at_most("endless", file, 8)
    assert limits.read_line("memory", io.BytesIO(b"a\nb"), 1) == b"a\n"
