# SPDX-License-Identifier: Apache-2.0
"""The health listener: GET /ping, /livez, /readyz for load balancers and orchestrators, /status and /metrics for operators.

Plain HTTP, inside the supervisor.

/ping   200 while requests are served, 503 while not (starting, draining, no worker that is heard of): for load balancers.
/livez  200 while some worker has been heard from in the last seconds, or has said why it does not work, which a restart would not
        change (it may be a PIN that must not be tried again): restart us when it is not.
/readyz 200 while every worker serves and every key manager answers; the body says who does not, why, and what the node lacks.

Further pages are handed in; they may take a moment, since workers are asked.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import httptools
import orjson

MAX_REQUEST_BYTES = 8192
MAX_CONNECTIONS = 64
TIMEOUT_S = 10.0
CRLF = "\r\n"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Page = Callable[[], Awaitable[tuple[str, bytes]]]  # gives (content type, body)


@dataclass(frozen=True)
class WorkerHealth:
    """One worker as /readyz shows it."""

    worker: int
    ready: bool
    healthy: bool
    alive: bool
    connections: int
    authenticated: int  # of these, with an accepted signature
    seq: int
    refused: bool = False  # it has said why it does not work, and is tried again or waits for a person
    problem: str = ""


class HealthListener:
    """workers: called per request; what every worker is like now. pages: path -> what else is served. problems: of the node."""

    def __init__(
        self,
        workers: Callable[[], list[WorkerHealth]],
        pages: Mapping[str, Page] | None = None,
        problems: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.pages = dict(pages or {})
        self._workers = workers
        self._problems = problems
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.Transport] = set()

    async def serve(self, sock: socket.socket) -> None:
        """Begin to answer on a listening socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _HealthConnection(self), sock=sock)

    def close(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
        for transport in tuple(self._transports):
            transport.abort()

    def answer(self, path: str) -> tuple[int, dict[str, object]]:
        """(HTTP status, body) for a path."""
        workers = self._workers()
        if path == "/ping":
            serving = any(worker.ready and worker.alive for worker in workers)
            return (200 if serving else 503), {"status": "pong" if serving else "not serving"}
        if path == "/livez":
            alive = any(worker.alive or worker.refused for worker in workers)
            return (200 if alive else 503), {"status": "alive" if alive else "no worker answers"}
        if path == "/readyz":
            ready = bool(workers) and all(worker.ready and worker.healthy and worker.alive for worker in workers)
            details = [asdict(worker) for worker in workers]
            status = "ready" if ready else "not ready"
            return (200 if ready else 503), {"status": status, "problems": list(self._problems()), "workers": details}
        known = ["/ping", "/livez", "/readyz", *self.pages]
        return 404, {"status": f"there are {', '.join(known[:-1])} and {known[-1]}"}


class _HealthConnection(asyncio.Protocol):
    """One connection of a prober: small, strict, one time-out for all of it."""

    def __init__(self, listener: HealthListener) -> None:
        self._listener = listener
        self._path = b""
        self._received = 0
        self._page: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpRequestParser(self)
        self._timer = asyncio.get_running_loop().call_later(TIMEOUT_S, self._transport.abort)
        if len(self._listener._transports) >= MAX_CONNECTIONS:
            self._transport.abort()
        self._listener._transports.add(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._listener._transports.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._respond(400, {"status": "not well-formed HTTP/1.1"})
        else:
            if self._received > MAX_REQUEST_BYTES:
                self._respond(400, {"status": "the request is too long"})

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_message_complete(self) -> None:
        if self._parser.get_method() not in (b"GET", b"HEAD"):
            self._respond(405, {"status": "GET only"})
            return
        path = self._path.split(b"?")[0].decode("latin-1")
        page = self._listener.pages.get(path)
        if page is None:
            self._respond(*self._listener.answer(path))
        elif self._page is None:
            self._page = asyncio.get_running_loop().create_task(self._respond_with(page))

    async def _respond_with(self, page: Page) -> None:
        try:
            content_type, body = await page()
        except Exception:
            self._respond(500, {"status": "this page cannot be made: the log says why"})
            raise
        self._send(200, content_type, body)

    def _respond(self, status: int, document: dict[str, object]) -> None:
        self._send(status, "application/json", orjson.dumps(document))

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        if self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            f"{'Allow: GET, HEAD' + CRLF if status == 405 else ''}Connection: close\r\n\r\n"
        )
        no_body = self._parser.get_method() == b"HEAD"
        self._transport.write(head.encode("ascii") + (b"" if no_body else body))
        self._transport.close()
