"""The end of the server, by a signal: in a module of its own, as modules share a server."""

import json
import signal

import pytest
from helpers.processes import SECONDS

pytestmark = [pytest.mark.browser, pytest.mark.process]


def test_it_ends_without_a_trace(visit, new_visit, films, server):
    visit.upload(films["good"])
    visit.wait_for_video()
    # Uploads without an event fill the room that there is for all.
    for size in (900_000, 0):
        codes = [server.send(bytes(size)) for _ in range(12)]
        assert codes[-1] == 507
    other = new_visit()
    other.upload(films["good"])
    other.page.wait_for_function("document.body.innerText.includes('Please try again later')")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SECONDS) == 130
    assert list(server.scratch.iterdir()) == []
    assert json.loads(server.log.read_text())["public_address"] is None
