"""Nothing goes on the network: not the tests, not an import, not a localization."""

import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.network import NetworkError, guard_network

ROOT = Path(__file__).parents[1]
PUBLIC = "192.0.2.1"  # kept free for documents: nobody is there

# What a user does, from the first import to moments; every public name is asked for.
JOB = """
import sys

sys.path.insert(0, {tests!r})
from helpers.network import guard_network

guard_network()
import numpy as np
import tmapdiff
from tmapdiff import FrameEncoder, MomentLocalizationPipeline, PRESETS, Vocabulary

for name in tmapdiff.__all__:
    getattr(tmapdiff, name)
encoder = FrameEncoder("test_resnet", pretrained=False)
vocabulary = Vocabulary(["person", "opens", "door"])
localizer = PRESETS["nano"].build(
    vocabulary_size=len(vocabulary), clip_channels=encoder.feature_dim
)
pipe = MomentLocalizationPipeline(localizer, vocabulary, encoder, fps=2.0)
pipe.save_pretrained({folder!r})
pipe = MomentLocalizationPipeline.from_pretrained({folder!r})
pictures = np.zeros((20, 32, 32, 3), np.uint8)
found = pipe(pictures, "person opens a door", frame_rate=4.0)
print(len(found.moments[0]), "moments")

# huggingface_hub has a thread that sends telemetry, where it is asked to.
from huggingface_hub.utils import _telemetry

print(_telemetry._TELEMETRY_THREAD, _telemetry._TELEMETRY_QUEUE.qsize())
"""


def run(code: str, *before: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("HF_HUB_OFFLINE", None)  # as users have it
    command = [*before, sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


def test_imports_and_localization_need_no_network_and_tell_nobody(tmp_path):
    # In a network of its own, with nothing in it, where the machine allows that.
    before = ("unshare", "-rn") if can_unshare() else ()
    code = JOB.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "pipeline"))
    done = run(code, *before)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ["5 moments", "None 0"]


@pytest.mark.skipif(
    not can_unshare(), reason="this machine does not let processes leave its network"
)
def test_a_network_of_its_own_has_nothing_in_it():
    code = f"""
    import socket
    try:
        socket.create_connection(({PUBLIC!r}, 80), timeout=5)
    except OSError as error:
        print(error.strerror)
    """
    assert "unreachable" in run(code, "unshare", "-rn").stdout


@pytest.mark.parametrize(
    "wish",
    [
        lambda: socket.create_connection((PUBLIC, 80), timeout=1),
        lambda: socket.create_connection(("example.invalid", 80), timeout=1),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (PUBLIC, 53)),
        lambda: socket.socket(socket.AF_INET6).connect_ex(("2001:db8::1", 80)),
        lambda: socket.gethostbyname("example.invalid"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tests_do_not_leave_the_machine(wish):
    with pytest.raises(NetworkError, match=r"tests: expected no network, got socket\.\w+ of "):
        wish()


def test_what_stays_on_the_machine_is_allowed(tmp_path):
    guard_network()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, port), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
