"""No test goes on the network: connections to other machines fail at once, and say so."""

import contextlib
import errno
import functools
import ipaddress
import socket
import sys
from collections.abc import Iterator
from typing import Any

_LOCAL_NAMES = {"localhost", "", None, socket.gethostname(), socket.getfqdn()}
_wishes: list[str] | None = None


class NetworkError(OSError):
    """A test wanted to go on the network.

    To libraries it looks as if there were none: some ask for what they can do without.
    """


@functools.cache  # hooks add up
def guard_network() -> None:
    """From now on in this process, let no connection leave the machine."""
    with contextlib.suppress(OSError):  # where it has no address but loopback
        _LOCAL_NAMES.update(socket.gethostbyname_ex(socket.gethostname())[2])
    sys.addaudithook(_look)


@contextlib.contextmanager
def watched_network() -> Iterator[list[str]]:
    """Note what wants to go on the network meanwhile, whoever hides that it could not."""
    global _wishes
    guard_network()
    _wishes = noted = []
    try:
        yield noted
    finally:
        _wishes = None


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a path of a Unix socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    if not _is_local(host):
        if _wishes is not None:
            _wishes.append(f"{event} of {host!r}")
        hint = "Make or ship what the test needs."
        text = f"tests: expected no network, got {event} of {host!r}. {hint}"
        raise NetworkError(errno.ENETUNREACH, text)


def _is_local(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False
