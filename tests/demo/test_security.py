import asyncio

from tmapdiff.demo.security import SameHostOnly


def answer_to(path, kind="http"):
    """What the middleware lets through, and answers."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(event):
        sent.append(event)

    asyncio.run(SameHostOnly(app)({"type": kind, "path": path}, None, send))
    return reached, sent[0]


def test_files_of_other_hosts_are_not_fetched():
    for path in ("/gradio_api/file=http://example.org/a", "/file=https%3A//example.org"):
        reached, answer = answer_to(path)
        assert reached == []
        assert answer["status"] == 403


def test_ways_to_leave_files_that_the_page_does_not_use_are_closed():
    for path in ("/gradio_api/process_recording", "/gradio_api/deep_link", "/x/deep_link/"):
        reached, answer = answer_to(path)
        assert reached == []
        assert answer["status"] == 403


def test_the_browser_is_told_to_stay():
    reached, answer = answer_to("/gradio_api/file=/tmp/a.mp4")
    assert reached == ["/gradio_api/file=/tmp/a.mp4"]
    headers = dict(answer["headers"])
    assert headers[b"a"] == b"b"
    assert headers[b"content-security-policy"].startswith(b"default-src 'self'")
    assert b"http" not in headers[b"content-security-policy"]


def test_what_is_not_http_passes():
    reached, answer = answer_to("/file=http://", kind="websocket")
    assert reached
    assert answer["headers"] == [(b"a", b"b")]
