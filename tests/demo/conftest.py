"""One small pipeline, one server and one browser for all tests of the demo."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
from helpers.processes import free_port
from helpers.videos import write_video

from tmapdiff import PRESETS, FrameEncoder, MomentLocalizationPipeline, Vocabulary
from tmapdiff.data import SyntheticVideos

CLIPS = 16  # of the pipeline
MAX_MEGABYTES = 1


@pytest.fixture(scope="session")
def pipeline():
    torch.manual_seed(0)
    encoder = FrameEncoder("test_resnet", pretrained=False)
    vocabulary = Vocabulary.from_sentences(["the red circle moves to the left"])
    localizer = PRESETS["nano"].build(
        vocabulary_size=len(vocabulary), clip_channels=encoder.feature_dim
    )
    assert localizer.grid.num_clips == CLIPS
    return MomentLocalizationPipeline(localizer.eval(), vocabulary, encoder, fps=2)


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Return files by what is special about them."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("films")
    data = SyntheticVideos(1, split="test")
    (good,) = data.write(folder)
    broken = folder / "broken.mp4"
    broken.write_bytes(good.read_bytes()[:900])
    text = folder / "letter.mp4"
    text.write_text("Dear Sir or Madam,\n")
    large = folder / "large.mp4"
    large.write_bytes(bytes(int(MAX_MEGABYTES * 1_000_000) + 1))
    return {
        "good": good,
        "duration": data.videos[good.stem].duration,
        "broken": broken,
        "text": text,
        "hour": write_video(folder / "hour.mp4", [0, 1800, 3600]),
        "short": write_video(folder / "short.mp4", range(5), rate=1),
        "large": large,
    }


@pytest.fixture
def film(tmp_path):
    """A video of three seconds."""
    return write_video(tmp_path / "film.mp4", range(4), rate=1)


@dataclass
class Server:
    """The demo in its own process."""

    address: str
    scratch: Path  # folder of its temporary files
    process: subprocess.Popen
    log: Path  # its standard output
    outside: socket.socket  # proxy for requests to other hosts, which must get none

    def files(self):
        """Return the names of visitors' files."""
        # Not rglob: what the server deletes meanwhile would be an error to it.
        names = [name for _, _, names in os.walk(self.scratch) for name in names]
        # Old releases of torch keep a file there while they run.
        return sorted(name for name in names if not name.startswith("_remote_module_"))

    def status_of(self, path):
        try:
            with urllib.request.urlopen(f"{self.address}/{path}", timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def server(pipeline, films, tmp_path_factory):
    for package in ("gradio", "typer"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    folder = tmp_path_factory.mktemp("server")
    pipeline.save_pretrained(folder / "pipeline")
    picks, scratch, log = folder / "picks", folder / "scratch", folder / "log"
    picks.mkdir()
    scratch.mkdir()
    shutil.copy(films["good"], picks / "shapes.mp4")
    (picks / "notes.txt").write_text("nobody's business")
    port = free_port()
    command = [sys.executable, "-m", "tmapdiff", "demo", "--model", str(folder / "pipeline"),
               "--video-dir", str(picks), "--port", str(port),
               "--max-megabytes", str(MAX_MEGABYTES), "--device", "cpu", "--json"]  # fmt: skip
    outside = socket.create_server(("127.0.0.1", 0))
    outside.setblocking(False)
    proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), proxy),
        "no_proxy": "127.0.0.1,localhost",
    }
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, env=environment, cwd=folder)
    try:
        deadline = time.monotonic() + 180
        while "}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        address = json.loads(log.read_text())["address"].rstrip("/")
        assert address == f"http://127.0.0.1:{port}"
        yield Server(address, scratch, process, log, outside)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        outside.close()


@pytest.fixture(scope="module")  # playwright keeps an event loop running
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield browser
        browser.close()


@dataclass
class Visit:
    """A visitor's page, the hosts it contacted, and errors of scripts and requests."""

    page: object
    hosts: set = field(default_factory=set)
    complaints: list = field(default_factory=list)

    def upload(self, path):
        self.page.set_input_files("#upload input[type=file], input[type=file]", path)

    def pick(self, name):
        self.page.click("#picker input")
        self.page.click(f"ul[role=listbox] li:has-text('{name}')")

    def wait_for_video(self):
        script = "(document.querySelector('#player video') || {}).readyState >= 2"
        self.page.wait_for_function(script)

    def ask(self, query, steps=None, samples=None):
        for name, value in {"steps": steps, "samples": samples}.items():
            if value is not None:
                self.page.fill(f"#{name} input[type=number]", str(value))
                self.page.press(f"#{name} input[type=number]", "Tab")
        # Marks the old answer, which stays until the new one comes.
        self.page.evaluate(
            "document.querySelectorAll('#map .figure').forEach((one) => one.className = 'old')"
        )
        self.page.fill("#query textarea, #query input", query)
        self.page.click("#ask")

    def wait_for_answer(self):
        self.page.wait_for_selector("#map .figure canvas")

    def wait_for_alert(self):
        return self.page.wait_for_selector("#status [role=alert]").text_content()

    def video(self, what):
        return self.page.evaluate(f"document.querySelector('#player video').{what}")


@pytest.fixture
def new_visit(server, browser):
    contexts = []

    def start():
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        one = Visit(page)
        page.on("request", lambda request: one.hosts.add(urlparse(request.url).netloc))
        page.on("pageerror", lambda error: one.complaints.append(str(error)))
        page.on(
            "response",
            lambda answer: one.complaints.append(answer.url) if answer.status >= 400 else None,
        )
        page.goto(server.address)
        page.wait_for_selector("#ask")
        return one

    yield start
    for context in contexts:
        context.close()


@pytest.fixture
def visit(new_visit):
    return new_visit()
