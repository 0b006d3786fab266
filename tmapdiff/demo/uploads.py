"""Route for uploads, replacing Gradio's."""

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradio_client.utils import strip_invalid_filename_characters
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tmapdiff._core.checks import message
from tmapdiff.demo.sessions import SessionVideos
from tmapdiff.errors import VideoError

_AROUND = 10_000  # bytes of a request besides its file


@dataclass
class UploadRoute:
    """ASGI middleware that stores each upload separately, within a total limit.

    Gradio stores equal files once, so that the first visitor would delete the file of the others,
    and it keeps any number of unused files.
    """

    app: Any  # handles all other requests
    videos: SessionVideos

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        answer: Any = self.app
        posted = scope["type"] == "http" and scope["method"] == "POST"
        if posted and scope["path"].rstrip("/").endswith("/upload"):
            answer = await self._take(Request(scope, receive))
        await answer(scope, receive, send)

    async def _take(self, request: Request) -> Response:
        most = self.videos.limits.max_bytes
        stated = request.headers.get("content-length", "")
        size = int(stated) if re.fullmatch("[0-9]{1,18}", stated) else most + _AROUND
        if size > most + _AROUND:
            await _discard(request, most + _AROUND)
            return PlainTextResponse(self._too_large(), 413)
        try:
            folder = self.videos.expect(size)
        except VideoError as error:
            await _discard(request, size)
            return PlainTextResponse(str(error), 507)
        left = size

        async def receive_at_most() -> Any:
            nonlocal left
            event = await request.receive()
            left -= len(event.get("body", b""))
            if left < 0:
                raise MultiPartException(self._too_large())
            return event

        try:
            limited = Request(request.scope, receive_at_most)
            async with limited.form(max_files=1, max_fields=1) as form:
                file = form.get("files")
                if not isinstance(file, UploadFile):
                    raise MultiPartException("The request has no file.")
                # The name that Gradio would use.
                name = strip_invalid_filename_characters(Path(file.filename or "").name)
                name = name.lstrip(".") or "file"
                with (folder / name).open("wb") as target:
                    await run_in_threadpool(shutil.copyfileobj, file.file, target)
        except BaseException as error:
            self.videos.forget(folder)
            if isinstance(error, MultiPartException | HTTPException):
                return PlainTextResponse(getattr(error, "detail", None) or error.message, 400)
            raise  # the visitor has disconnected, or the disk is full
        return JSONResponse([str(folder / name)])

    def _too_large(self) -> str:
        expected = f"a file of at most {self.videos.limits.max_megabytes:g} MB"
        return message("the demo", expected, "a larger one")


async def _discard(request: Request, most: int) -> None:
    """Read the request first, as browsers show no response that arrives while they send."""
    with suppress(ClientDisconnect):
        async for part in request.stream():
            most -= len(part)
            if most < 0:
                return
