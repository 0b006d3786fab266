"""Requests as browsers send them, without a server."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.clock import FakeTime
from helpers.videos import write_video

from tmapdiff.demo import DemoLimits
from tmapdiff.demo.sessions import SessionVideos
from tmapdiff.errors import FileError, VideoError

httpx = pytest.importorskip("httpx", reason="it comes with the extra demo")
pytest.importorskip("gradio_client")

from starlette.requests import ClientDisconnect  # noqa: E402

from tmapdiff.demo.uploads import UploadRoute  # noqa: E402

LIMITS = DemoLimits(max_megabytes=0.5, max_total_megabytes=2)


@pytest.fixture
def clock(monkeypatch):
    time = FakeTime()
    monkeypatch.setattr("tmapdiff.demo.sessions.monotonic", time)
    return time


@pytest.fixture
def videos(tmp_path):
    return SessionVideos(tmp_path / "kept", LIMITS)


async def elsewhere(scope, receive, send):
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def post(videos, *requests):
    """Return the responses to simultaneous requests."""

    async def send_all():
        transport = httpx.ASGITransport(UploadRoute(elsewhere, videos))
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            address = "/gradio_api/upload"
            return await asyncio.gather(*(client.post(address, **one) for one in requests))

    return asyncio.run(send_all())


def sending(content, name="film.mp4"):
    return {"files": {"files": (name, content, "video/mp4")}}


def files(videos):
    return [path for path in videos.folder.rglob("*") if path.is_file()]


def test_eight_visitors_with_the_same_file_are_all_served(videos, film):
    from tmapdiff.demo.visits import Visits

    content = film.read_bytes()
    answers = post(videos, *[sending(content)] * 8)
    sent = [one.json()[0] for one in answers]
    assert len(set(sent)) == 8
    visits = Visits(None, videos, {})
    for number, path in enumerate(sent):
        visitor = SimpleNamespace(session_hash=f"visitor {number}")
        shown, _, said, _ = visits.upload({"path": path}, visitor)
        assert "film.mp4 is ready." in said
        assert Path(shown).read_bytes() == content
    assert len(files(videos)) == len(videos) == 8
    videos.end("visitor 0")
    assert len(files(videos)) == 7
    assert not Path(sent[0]).parent.exists()


def test_uploads_that_nobody_asks_about_go_after_an_hour(videos, film, clock):
    (answer,) = post(videos, sending(film.read_bytes()))
    clock.wait(3500)
    videos.sweep()
    assert len(files(videos)) == 1
    clock.wait(200)
    videos.sweep()
    assert list(videos.folder.iterdir()) == []
    with pytest.raises(FileError, match="expected a file, got No such file"):
        videos.take("ann", answer.json()[0], move=True)


def test_all_uploads_together_are_limited(videos, clock):
    requests = [sending(bytes(400_000))] * 8
    answers = post(videos, *requests)
    assert sorted(one.status_code for one in answers) == [200] * 4 + [507] * 4
    refused = next(one for one in answers if one.status_code == 507)
    assert refused.text == (
        "the demo: expected 0.4 MB of space beside the files of other visitors, got 0.4 MB. "
        "Please try again later."
    )
    assert len(files(videos)) == 4
    assert len(list(videos.folder.iterdir())) == 4
    clock.wait(3601)
    (answer,) = post(videos, requests[0])
    assert answer.status_code == 200
    assert len(files(videos)) == 1


def test_files_without_content_fill_it_too(videos):
    answers = post(videos, *[sending(b"")] * 30)
    assert sum(one.status_code == 200 for one in answers) == 20


def test_what_visitors_have_counts(videos, film, tmp_path):
    for number in range(20):
        (answer,) = post(videos, sending(film.read_bytes()))
        videos.take(f"visitor {number}", answer.json()[0], move=True)
    assert post(videos, sending(film.read_bytes()))[0].status_code == 507
    # A copy that browsers can play would take room, a link does not.
    odd = write_video(tmp_path / "odd.avi", range(4), codec="mpeg4", rate=1, time_base=1)
    with pytest.raises(VideoError, match=r"the demo: expected .* MB of space"):
        videos.take("ann", odd, move=False)
    videos.drop("visitor 0")
    assert videos.take("ann", odd, move=False).shown.exists()
    assert videos.take("bob", film, move=False).shown.exists()


def test_videos_of_visitors_who_vanished_go_after_a_day(videos, film, clock):
    for visitor in ("ann", "bob"):
        videos.take(visitor, film, move=False)
    clock.wait(80_000)
    assert videos.get("ann") is not None
    clock.wait(10_000)
    videos.sweep()
    assert videos.get("ann") is not None
    assert videos.get("bob") is None
    assert len(files(videos)) == 1
    assert film.exists()


@pytest.mark.parametrize("size", [500_000, 600_000, 10**7])
def test_larger_files_are_refused(videos, size):
    async def pieces():
        yield b'\r\n--x\r\nContent-Disposition: form-data; name="files"; filename="f.mp4"\r\n\r\n'
        for _ in range(size // 1000):
            yield bytes(1000)
        yield b"\r\n--x--\r\n"

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    answers = post(videos, sending(bytes(size)), {"content": pieces(), "headers": form})
    if size == 500_000:
        assert [one.status_code for one in answers] == [200, 200]
        return
    text = "the demo: expected a file of at most 0.5 MB, got a larger one."
    assert [(one.status_code, one.text) for one in answers] == [(413, text), (400, text)]
    assert list(videos.folder.glob("*")) == []


def test_names_cannot_lead_elsewhere(videos, tmp_path):
    for name in ("../../film.mp4", "..", "/etc/film.mp4", "a\x00b.mp4", "." * 300):
        before = set(tmp_path.rglob("*"))
        (answer,) = post(videos, sending(b"film", name))
        assert answer.status_code == 200
        (new,) = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
        assert new.parent.parent == videos.folder
        assert not new.name.startswith("."), name


def test_what_is_no_upload_is_refused(videos):
    several = [("files", ("a.mp4", b"film")), ("files", ("b.mp4", b"film"))]
    for request in (
        {"content": b"film", "headers": {"Content-Type": "video/mp4"}},
        {"content": b"film", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"film", "headers": {"Content-Type": "multipart/form-data"}},
        {"files": {"other": ("film.mp4", b"film")}},
        {"files": several},
        {},
    ):
        (answer,) = post(videos, request)
        assert answer.status_code == 400, request
        assert list(videos.folder.glob("*")) == []
    assert post(videos, sending(b"film"))[0].status_code == 200


@pytest.mark.parametrize(("stated", "status"), [(300_000, 507), (700_000, 413)])
def test_refused_uploads_are_read_before_the_answer(videos, stated, status):
    """Otherwise a browser that still sends would show a connection error."""
    for _ in range(4):
        videos.expect(500_000)  # so there is no room
    left, answered = [bytes(100_000)] * 3, []

    async def receive():
        part = left.pop()
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(event):
        answered.append((event.get("status"), len(left)))

    headers = [(b"content-length", str(stated).encode())]
    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers}
    asyncio.run(UploadRoute(elsewhere, videos)(scope, receive, send))
    assert answered[0] == (status, 0)


def test_who_leaves_while_sending_leaves_nothing(videos):
    async def leave():
        async def receive():
            return {"type": "http.disconnect"}

        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
        await UploadRoute(elsewhere, videos)(scope, receive, None)

    with pytest.raises(ClientDisconnect):
        asyncio.run(leave())
    assert list(videos.folder.glob("*")) == []


def test_all_else_passes(videos):
    async def status_of(**scope):
        sent = []

        async def send(event):
            sent.append(event)

        await UploadRoute(elsewhere, videos)(scope, None, send)
        return sent[0]["status"]

    for scope in (
        {"type": "http", "method": "POST", "path": "/gradio_api/queue/join"},
        {"type": "http", "method": "GET", "path": "/gradio_api/upload"},
        {"type": "websocket", "path": "/gradio_api/upload"},
    ):
        assert asyncio.run(status_of(**scope)) == 418
