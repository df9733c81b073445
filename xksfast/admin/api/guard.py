# SPDX-License-Identifier: Apache-2.0
"""Around every request: how large its body may be, a line in the log, and an answer whatever goes wrong.

The log line holds no query string and no header; of an exception it holds the type and the places in the code, never its text, which
could quote what a client sent. Those who have shown no token write a few lines a second, and a count of what was left out.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xksfast.admin.api import problems
from xksfast.line_limit import LineLimit
from xksfast.log import Log, frames_of

MAX_BODY_BYTES = 1024 * 1024
MAX_APPLY_BYTES = 16 * 1024 * 1024
BODY_PATIENCE_S = 60.0
APPLY_PATHS = ("/v1/apply", "/v1/apply/plan")


class Guard:
    """ASGI around ASGI."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self._app = app
        self._log = log
        self._strangers = LineLimit(log.warning)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        began = time.monotonic()
        request_id = secrets.token_hex(8)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        limit, words = (MAX_APPLY_BYTES, "16 MiB") if scope["path"] in APPLY_PATHS else (MAX_BODY_BYTES, "1 MiB")
        scope.setdefault("state", {})
        try:
            if _length(scope) > limit:
                await problems.too_large(words)(scope, receive, send_marked)
            else:
                await self._app(scope, _bounded(receive, limit, words), send_marked)
        except Exception as error:
            self._log.error("request_failed", request_id=request_id, problem=type(error).__name__, where=frames_of(error))
            if not status:
                await problems.of_internal_error()(scope, receive, send_marked)
            else:
                raise _Broken from None  # the server closes the connection: the client sees that the answer is not whole
        finally:
            actor = scope["state"].get("actor")
            line: dict[str, Any] = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"][:300],
                "status": status,
                "ms": round((time.monotonic() - began) * 1000, 1),
                "address": scope["client"][0] if scope.get("client") else "",
                "actor": actor.name if actor is not None else "",
            }
            if actor is not None or self._strangers.admits("admin_request", str(status)):
                (self._log.info if 0 < status < 400 else self._log.warning)("admin_request", **line)


class _Broken(Exception):
    """An answer that was begun cannot be finished."""


def _length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else 0
    return 0


def _bounded(receive: Receive, limit: int, words: str) -> Receive:
    """The body within its limits of size and time; what comes after it (the client has gone) may take as long as it likes."""
    got = 0
    more = True
    until = time.monotonic() + BODY_PATIENCE_S

    async def bounded() -> Message:
        nonlocal got, more
        if not more:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), until - time.monotonic())
        except TimeoutError:
            raise HTTPException(408, f"{BODY_PATIENCE_S:g} s") from None
        got += len(message.get("body", b""))
        if got > limit:
            raise HTTPException(413, words)
        more = message.get("more_body", False)
        return message

    return bounded
