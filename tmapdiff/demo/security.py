"""Keeps the page from contacting other hosts, and the server from serving what they have."""

from typing import Any
from urllib.parse import unquote

_POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)


class SameHostOnly:
    """ASGI middleware: browsers load only from this server, and request no URLs as its files."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Gradio fetches URLs that are requested as files.
        _, _, file = unquote(scope.get("path", "")).partition("file=")
        if ":/" in file:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"Only files of this server."})
            return

        async def send_with_policy(event: Any) -> None:
            if event["type"] == "http.response.start":
                headers = [*event.get("headers", ()), (b"content-security-policy", _POLICY)]
                event = {**event, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(event)

        await self.app(scope, receive, send_with_policy)
