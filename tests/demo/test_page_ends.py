"""The end of the server, by a signal: in a module of its own, as modules share a server."""

import json
import signal

import pytest
from helpers.processes import SECONDS

pytestmark = [pytest.mark.browser, pytest.mark.process]


def test_it_ends_without_a_trace(visit, films, server):
    visit.upload(films["good"])
    visit.wait_for_video()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SECONDS) == 130
    assert list(server.scratch.iterdir()) == []
    assert json.loads(server.log.read_text())["public_address"] is None
