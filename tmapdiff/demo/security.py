"""Keeps the page, and the server behind it, from talking to other hosts."""

from typing import Any
from urllib.parse import unquote

_POLICY = (
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)


class SameHostOnly:
    """ASGI middleware: the browser loads from this server only, which fetches nothing for others.

    Gradio would fetch a file of another host when its address is asked for as a file.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    @classmethod
    def as_middleware(cls) -> Any:
        """Wrap it as FastAPI takes it."""
        from starlette.middleware import Middleware

        return Middleware(cls)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = unquote(scope.get("path", ""))
        if "file=" in path and ":/" in path.split("file=", 1)[1]:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"Only files of this server."})
            return

        async def send_with_policy(event: Any) -> None:
            if event["type"] == "http.response.start":
                headers = [*event.get("headers", ()), (b"content-security-policy", _POLICY)]
                event = {**event, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(event)

        await self.app(scope, receive, send_with_policy)
