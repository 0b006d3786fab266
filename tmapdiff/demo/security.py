"""Keeps the page and its server from contacting other hosts."""

from typing import Any
from urllib.parse import unquote

_POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
_CLOSED = ("/process_recording", "/deep_link")


class SameHostOnly:
    """ASGI middleware: the browser loads only from this server, which fetches nothing elsewhere.

    Gradio would fetch URLs that are requested as files. Its unused routes for storing files are
    closed too.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = unquote(scope.get("path", ""))
        of_others = "file=" in path and ":/" in path.split("file=", 1)[1]
        if of_others or path.rstrip("/").endswith(_CLOSED):
            text = b"Only files of this server." if of_others else b"This route is closed."
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": text})
            return

        async def send_with_policy(event: Any) -> None:
            if event["type"] == "http.response.start":
                headers = [*event.get("headers", ()), (b"content-security-policy", _POLICY)]
                event = {**event, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(event)

        await self.app(scope, receive, send_with_policy)
