"""Starts the server of the page about serving, and asks it as the page's client does."""

import contextlib
import io
import json
import socket
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from helpers.pipelines import make_localizer, make_pictures, make_pipe, write_video
from helpers.processes import SECONDS, free_port, start_program

from tmapdiff import FrameEncoder, Vocabulary

from .test_code_blocks import ROOT, blocks_of

SENTENCE = "a dog runs into the sea"


@pytest.fixture
def pipe():
    words = Vocabulary.from_sentences([SENTENCE])
    localizer = make_localizer(encoder={"vocabulary_size": len(words)}, num_samples=2)
    return make_pipe(
        localizer, vocabulary=words, frame_encoder=FrameEncoder("test_resnet", pretrained=False)
    )


@pytest.mark.process
def test_answers_to_many_threads_are_the_pipelines(pipe, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    server, client = blocks_of((ROOT / "docs/guides/serving.md").read_text())
    (tmp_path / "serve.py").write_text(server.code)
    (tmp_path / "videos" / "folder").mkdir(parents=True)
    video = write_video(tmp_path / "videos" / "holiday.mp4", make_pictures(24))
    pipe.save_pretrained(tmp_path / "pipeline")
    monkeypatch.setenv("PIPELINE", str(tmp_path / "pipeline"))
    monkeypatch.setenv("VIDEOS", str(tmp_path / "videos"))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "serve:app", "--port", str(port)]
    running = start_program(command, cwd=tmp_path)
    wait_for(port, running)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(client.code.replace(":8000", f":{port}"), names)
    for seed, (answer, seconds) in enumerate(names["answers"]):
        (expected,) = pipe(video, SENTENCE, generator=torch.Generator().manual_seed(seed)).moments
        assert seconds > 0
        for found, one in zip(answer[0], expected, strict=True):
            assert found == pytest.approx(vars(one), abs=1e-4)
    assert names["answers"][0][0] != names["answers"][1][0]  # each its own
    assert refusal(port, "../pipeline/model_index.json", SENTENCE) == (404, "no video ../pipel")
    assert refusal(port, "folder", SENTENCE) == (404, "no video folder")
    assert refusal(port, "holiday.mp4", SENTENCE, seed=2**64)[0] == 422
    code, text = refusal(port, "holiday.mp4", "el perro")
    assert code == 400
    assert "expected" in text


def refusal(port, video, sentence, **options):
    body = json.dumps({"video": video, "sentences": [sentence], **options}).encode()
    address, kind = f"http://127.0.0.1:{port}/moments", {"Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(address, body, kind))
    with caught.value as answer:
        return answer.code, json.load(answer)["detail"][: 17 if answer.code == 404 else None]


def wait_for(port, running):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and running.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    pytest.fail("the server does not start")
