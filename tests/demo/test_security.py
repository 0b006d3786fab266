import asyncio

from tmapdiff.demo.security import SameHostOnly


def answer_to(path, kind="http"):
    """Return the paths that the middleware lets through, and its response."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(event):
        sent.append(event)

    asyncio.run(SameHostOnly(app)({"type": kind, "path": path}, None, send))
    return reached, sent[0]


def test_files_of_other_hosts_are_refused():
    for path in ("/gradio_api/file=http://example.org/a", "/file=https%3A//example.org"):
        reached, answer = answer_to(path)
        assert (reached, answer["status"]) == ([], 403), path


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
