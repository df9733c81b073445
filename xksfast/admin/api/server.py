# SPDX-License-Identifier: Apache-2.0
"""The listener of the administration: uvicorn inside the control process's loop.

Its own address, its own certificate, apart from the proxy's. A newcomer's trap: uvicorn would take over the process's signals and its
logging; both stay ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from xksfast.admin.api import problems
from xksfast.admin.api.door import ADMIT, Door, Visitor
from xksfast.config import Address
from xksfast.errors import OperatorError
from xksfast.line_limit import LineLimit
from xksfast.log import Log

BACKLOG = 128
KEEP_ALIVE_S = 30
HEADER_PATIENCE_S = 10.0  # from the connection, or the first byte of a further request, to the end of the headers
DRAIN_S = 5
TICK_S = 1.0


class ApiServer:
    """address: (host, port) where it really listens. url: the same for clients."""

    def __init__(self, server: _Server, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._sock = sock
        self._context = context
        host, port = sock.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self.url = f"{'https' if context else 'http'}://{Address(host, port)}"
        self._task = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]))

    @property
    def is_tls(self) -> bool:
        """Whether there is a certificate that can be reloaded."""
        return self._context is not None

    async def started(self) -> None:
        """Returns when requests are served. OperatorError when they will not be."""
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise OperatorError(f"admin.listen: {self.url} cannot be served")
            await asyncio.sleep(0.005)

    def reload_certificate(self, certificate: str, private_key: str) -> None:
        """For connections from now on; those that there are stay. OperatorError leaves the former one in place."""
        if self._context is not None:
            if not certificate:
                raise OperatorError("admin.certificate: none is named any more: plain HTTP is served from the next start on")
            tls_context(certificate, private_key)  # tried apart first: a context with half a pair serves nobody
            self._context.load_cert_chain(certificate, private_key, password=_no_passphrase(private_key))

    async def close(self) -> None:
        """No new connections; requests that run are given DRAIN_S, then cut off."""
        self._server.close()
        done, _ = await asyncio.wait((self._task,), timeout=DRAIN_S + 2)
        if not done:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._sock.close()


async def serve_api(app: ASGIApp, sock: socket.socket, log: Log, *, certificate: str = "", private_key: str = "") -> ApiServer:
    """Serving when it returns. sock: bound, ours from now on. certificate, private_key: PEM files; "": plain HTTP.

    OperatorError: the certificate cannot be used.
    """
    context = tls_context(certificate, private_key) if certificate else None
    _log_by(log)
    sock.setblocking(False)
    config = uvicorn.Config(
        app,
        loop="none",
        http=_Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    config.load()
    server = ApiServer(_Server(config, Door(sock, context, log)), sock, context)
    await server.started()
    log.info("admin_listening", url=server.url)
    return server


class _Protocol(HttpToolsProtocol):
    """Whoever opens a connection must say what it wants in time, or else a few hundred silent ones would keep operators out."""

    visitor: Visitor
    _deadline: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Between two requests, or in one that its client holds up: it does not send the rest, or does not read the answer."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A request is due."""
        self.visitor.server = self
        super().connection_made(transport)
        self._await_headers()

    def on_message_begin(self) -> None:
        """The next request on the same connection has begun."""
        super().on_message_begin()
        self.scope[ADMIT] = self.visitor.admit  # type: ignore[literal-required]
        self._await_headers()

    def on_headers_complete(self) -> None:
        """In time."""
        self._stop_waiting()
        self.app = _busy if self.visitor.door_is_full else self.config.loaded_app
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._stop_waiting()
        self.visitor.leave()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(HEADER_PATIENCE_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._closing = asyncio.Event()
        self._door = door

    def close(self) -> None:
        """Ends the main loop."""
        self.should_exit = True
        self._closing.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own accepts without an end, and keeps who shakes hands for a minute."""
        await self.lifespan.startup()
        self.servers = []
        self._door.open(
            lambda: _Protocol(self.config, server_state=self.server_state, app_state=self.lifespan.state), self.config.backlog
        )
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Nobody comes in any more; then as uvicorn does it."""
        self._door.close()
        await super().shutdown(sockets)

    async def main_loop(self) -> None:
        """A tick a second, for the Date header: uvicorn's own ten wake a process that has nothing to do."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), TICK_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The supervisor's signals are none of its business."""
        yield


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    """To whom the door could not be kept shut: every connection is at work for somebody who has authenticated."""
    answer = problems.problem(
        503,
        "busy",
        "The administration has more connections at work than it serves at once",
        next="Try again in a moment",
        headers={"Connection": "close"},
    )
    await answer(scope, receive, send)


def tls_context(certificate: str, private_key: str) -> ssl.SSLContext:
    """TLS 1.2 and newer. OperatorError says what is wrong with the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, private_key, password=_no_passphrase(private_key))
    except (OSError, ssl.SSLError) as error:
        absent = next((path for path in (certificate, private_key) if not Path(path).is_file()), None)
        fault = (
            f"there is no file {absent}"
            if absent
            else f"{certificate} and {private_key} do not go together or are no PEM files"
        )
        raise OperatorError(f"admin.certificate: {fault} ({getattr(error, 'reason', None) or error.strerror})") from None
    return context


def _no_passphrase(private_key: str) -> Callable[[], str]:
    """For a private key that is encrypted: without it OpenSSL would ask for the passphrase on the terminal, and wait."""

    def refuse() -> str:
        raise OperatorError(f"admin.private_key: {private_key} is encrypted: store it without a passphrase, mode 0600")

    return refuse


class _Lines(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._strangers = LineLimit(log.warning)

    def emit(self, record: logging.LogRecord) -> None:
        """What uvicorn has to say: no more than its own words."""
        if self._strangers.admits("admin_server"):
            self._log.warning("admin_server", problem=str(record.msg)[:200])


def _log_by(log: Log) -> None:
    logger = logging.getLogger("uvicorn")
    logger.handlers = [_Lines(log)]
    logger.propagate = False
    logging.getLogger("uvicorn.error").handlers = []
    logging.getLogger("uvicorn.error").propagate = True
