# SPDX-License-Identifier: Apache-2.0
"""One kept HTTP/1.1 connection over gevent: llhttp (httptools) on a plain socket, because the generator's own cost is in every number.

CPU per signed Encrypt on the machine this was written on: 112 us here, 272 us with geventhttpclient, which locust's FastHttpUser puts a
session on top of. It asks again, once, when the server has closed a kept connection: only if not a byte of an answer came. A client
that does so hides requests that a server has lost, so each is counted, and the verdict shows their number.
"""

from __future__ import annotations

from collections.abc import Mapping

import gevent.socket
import gevent.ssl
import httptools

from bench.requests import Target

RECEIVE_BYTES = 65_536


class Connection:
    """Requests to one key store, one at a time. timeout_s: for connecting and for each wait for bytes.

    resent: requests so far that were sent a second time.
    """

    def __init__(self, target: Target, timeout_s: float) -> None:
        scheme, _, authority = target.url.partition("://")
        host, _, port = authority.rpartition(":") if ":" in authority.rpartition("]")[2] else (authority, "", "")
        self._tls = gevent.ssl.create_default_context(cafile=target.ca_file) if scheme == "https" else None
        self._address = (host.strip("[]"), int(port or (443 if self._tls else 80)))
        self._timeout_s = timeout_s
        self.resent = 0
        self._socket: gevent.socket.socket | None = None

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """(HTTP status, body). OSError or httptools.HttpParserError when there is none; the connection is closed then."""
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"POST {path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body
        reused = self._socket is not None
        while True:
            answer = _Answer()
            try:
                return self._exchange(request, answer)
            except ConnectionError:
                self.close()
                if not reused or answer.begun:
                    raise
                reused = False
                self.resent += 1
            except (OSError, httptools.HttpParserError):
                self.close()
                raise

    def close(self) -> None:
        """Close; the next request connects anew."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, request: bytes, answer: _Answer) -> tuple[int, bytes]:
        sock = self._socket = self._socket or self._connect()
        sock.sendall(request)
        parser = httptools.HttpResponseParser(answer)
        while not answer.complete:
            received = sock.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionResetError("closed by the server")
            answer.begun = True
            parser.feed_data(received)
        if answer.closes:
            self.close()
        return parser.get_status_code(), answer.body

    def _connect(self) -> gevent.socket.socket:
        sock = gevent.socket.create_connection(self._address, self._timeout_s)
        sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(sock, server_hostname=self._address[0]) if self._tls else sock


class _Answer:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False
        self.begun = False
        self.closes = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"connection" and value.lower() == b"close":
            self.closes = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True
